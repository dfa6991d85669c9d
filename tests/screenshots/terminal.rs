//! A real terminal around the real program: keys go in, a screen comes out.

use std::io::{Read as _, Write as _};
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portable_pty::{CommandBuilder, MasterPty, PtySize, native_pty_system};

pub struct Terminal {
    parser: Arc<Mutex<vt100::Parser>>,
    /// Everything that the program ever wrote.
    bytes: Arc<Mutex<Vec<u8>>>,
    keys: Option<Box<dyn std::io::Write + Send>>,
    master: Option<Box<dyn MasterPty + Send>>,
    /// Nothing is read from the program: it waits in its next write, as behind Ctrl-S or a dead link.
    pub frozen: Arc<AtomicBool>,
    pub child: Box<dyn portable_pty::Child + Send + Sync>,
}

impl Terminal {
    /// Starts a program in a terminal of so many rows and columns.
    pub fn start(program: &str, arguments: &[&str], environment: &[(&str, &str)], rows: u16, cols: u16) -> Self {
        let pair = native_pty_system().openpty(PtySize { rows, cols, pixel_width: 0, pixel_height: 0 }).unwrap();
        let mut command = CommandBuilder::new(program);
        command.args(arguments);
        command.env("TERM", "xterm-256color");
        command.env("LC_ALL", "C.UTF-8");
        command.env("TZ", "UTC");
        for (name, value) in environment {
            command.env(name, value);
        }
        let child = pair.slave.spawn_command(command).unwrap();
        drop(pair.slave);
        let parser = Arc::new(Mutex::new(vt100::Parser::new(size(rows), size(cols), 0)));
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let mut output = pair.master.try_clone_reader().unwrap();
        let (into_parser, into_bytes) = (parser.clone(), bytes.clone());
        let frozen = Arc::new(AtomicBool::new(false));
        let stopped = frozen.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut chunk) {
                while stopped.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(10));
                }
                into_parser.lock().unwrap().process(&chunk[..read]);
                into_bytes.lock().unwrap().extend_from_slice(&chunk[..read]);
            }
        });
        let keys = pair.master.take_writer().unwrap();
        Self { parser, bytes, keys: Some(keys), master: Some(pair.master), frozen, child }
    }

    pub fn send(&mut self, keys: &str) {
        let line = self.keys.as_mut().unwrap();
        line.write_all(keys.as_bytes()).unwrap();
        line.flush().unwrap();
    }

    pub fn resize(&mut self, rows: u16, cols: u16) {
        // The program draws everything again when it hears of it, and that must find the new size here.
        self.parser.lock().unwrap().screen_mut().set_size(size(rows), size(cols));
        self.master.as_ref().unwrap().resize(PtySize { rows, cols, pixel_width: 0, pixel_height: 0 }).unwrap();
    }

    /// Takes the terminal away, as a lost connection does.
    pub fn hang_up(&mut self) {
        self.keys = None;
        self.master = None;
        let process = nix::unistd::Pid::from_raw(self.child.process_id().unwrap().try_into().unwrap());
        nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGHUP).unwrap();
    }

    /// The screen's lines, without spaces at their ends: whether those were ever drawn depends on the frames before.
    pub fn text(&self) -> String {
        let contents = self.parser.lock().unwrap().screen().contents();
        contents.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }

    pub fn written(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    /// Looks at the screen as cells.
    pub fn with_screen<T>(&self, look: impl FnOnce(&vt100::Screen) -> T) -> T {
        look(self.parser.lock().unwrap().screen())
    }

    /// Waits until the screen shows a text; the failure prints the screen.
    pub fn wait_for(&self, text: &str) {
        self.wait_until(text, |screen| screen.contains(text));
    }

    pub fn wait_until(&self, what: &str, holds: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(90);
        while !holds(&self.text()) {
            assert!(Instant::now() < deadline, "waited in vain for \"{what}\"; the screen is:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the screen has stopped changing.
    pub fn settle(&self) {
        let mut last = self.text();
        loop {
            std::thread::sleep(Duration::from_millis(300));
            let now = self.text();
            if now == last {
                return;
            }
            last = now;
        }
    }
}

fn size(cells: u16) -> NonZero<u16> {
    NonZero::new(cells).unwrap()
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
