//! A defect in one job becomes an error that is shown, not a program that is gone or waits for ever.

use std::sync::Mutex;

use futures_util::FutureExt as _;

use crate::error::{Error, Result};
use crate::text;

/// The words of what panicked since [`keep`].
static KEPT: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps the words of panics from now on instead of printing them: the terminal is a screen, or nobody's.
pub(crate) fn keep() {
    std::panic::set_hook(Box::new(|panic| {
        if let Ok(mut kept) = KEPT.lock() {
            kept.push(text::clean(&panic.to_string()).into_owned());
        }
    }));
}

/// Ends [`keep`], and gives what it kept.
pub(crate) fn kept() -> Vec<String> {
    let _ = std::panic::take_hook();
    KEPT.lock().map(|mut kept| std::mem::take(&mut *kept)).unwrap_or_default()
}

/// Runs a job so that a defect in it becomes an error.
pub(crate) async fn caught<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    if let Ok(result) = std::panic::AssertUnwindSafe(work).catch_unwind().await {
        result
    } else {
        let words = KEPT.lock().ok().and_then(|kept| kept.last().cloned()).unwrap_or_default();
        Err(Error::bug("a part of Lifeboat failed; this is a defect of ours")
            .detail(words)
            .hint("What was written or not stands in the journal: lifeboat journal. Please report the details."))
    }
}
