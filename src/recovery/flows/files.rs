//! Files were overwritten, deleted or encrypted: they come back from a snapshot, beside the present ones or in their place.
//!
//! After the recovery point is chosen the operator is asked: which files, where they go, which of those that are still there
//! are replaced, and whose they will be when an owner of the snapshot is somebody else here. Of the plan that comes out,
//! single files can be left out; that is an answer too, and gives another plan. Not for the data files of a database that
//! runs: those come back as rows, or with the whole server.

use super::{Answers, Choice, Next, Question, Refusal};
use crate::files::choice::{Destination, Policy};
use crate::files::write::Own;
use crate::recovery::plan::{Plan, Step};
use crate::recovery::record::{Fact, Finding, Gathered, Look, Point, Record, Where};
use crate::text;

/// What comes next, when the recovery point is known.
pub fn next(record: &Record, point: &Point) -> Next {
    let Some(paths) = record.files() else { return Next::Ask(ask_files(point)) };
    if paths.is_empty() {
        return refuse("no file was chosen", &["Go back and mark what is to come back, with Space."]);
    }

    let look = Look::Gather { point: point.id.clone(), paths: paths.to_vec() };
    let Some(Finding::Gathered(gathered)) = record.finding(&look) else { return Next::Look(look) };
    let Some(place) = record.place() else { return Next::Ask(ask_place(point, gathered)) };
    let destination = match place {
        Where::Beside => match record.folder() {
            Some(folder) => Destination::Beside(folder.into()),
            None => return Next::Ask(ask_folder(gathered)),
        },
        Where::InPlace => Destination::InPlace,
    };
    let policy = match (place, record.policy()) {
        (Where::Beside, _) => Policy::MissingAndChanged,
        (Where::InPlace, Some(policy)) => policy,
        (Where::InPlace, None) => return Next::Ask(ask_policy()),
    };
    let own = match record.own() {
        Some(own) => own,
        None if !gathered.privileged => Own::Me,
        None if gathered.strangers.is_empty() => Own::Numbers,
        None => return Next::Ask(ask_own(gathered)),
    };

    let except = record.except().to_vec();
    let look = Look::Choose { point: point.id.clone(), paths: paths.to_vec(), destination, policy, own, except };
    let Some(Finding::Chosen(choice)) = record.finding(&look) else { return Next::Look(look) };
    let step = match choice.destination {
        Destination::Beside(_) => Step::RestoreFiles { choice: choice.clone() },
        Destination::InPlace if choice.writes() == 0 && choice.items.is_empty() => {
            let left_out = choice.left_out.iter().take(5).map(|(path, why)| format!("{path}: {why}."));
            return Next::Refuse(Refusal {
                why: format!(
                    "nothing would be put in place: {} there already with the same content, {} left out",
                    text::counted(choice.same, "file is", "files are"),
                    choice.left_out.len()
                ),
                hints: left_out.chain(["Go back and choose other files, or another recovery point.".into()]).collect(),
            });
        }
        Destination::InPlace => Step::PutFiles { choice: choice.clone() },
    };
    Next::Ready(Plan { steps: vec![step] })
}

fn ask_files(point: &Point) -> Question {
    Question {
        title: "Which files have to come back?".into(),
        why: "Mark files and folders with Space, in as many places as needed; / searches the whole snapshot as you type. \
              Nothing is written yet."
            .into(),
        answers: Answers::Files { point: point.clone() },
    }
}

fn ask_place(point: &Point, gathered: &Gathered) -> Question {
    let measure = &gathered.measure;
    let much = format!(
        "{} in {}, {}",
        text::counted(measure.files, "file", "files"),
        text::counted(measure.folders, "folder", "folders"),
        text::bytes(measure.bytes)
    );
    let elsewhere = (point.host != gathered.host).then(|| {
        format!(
            "the snapshot is of {}, and this is {}: bring them back beside, and copy them there",
            point.host, gathered.host
        )
    });
    let mut why = format!("It is {much}.");
    if measure.others > 0 {
        why.push_str(&format!(
            " {} never made.",
            text::counted(measure.others, "device, pipe or socket is", "devices, pipes and sockets are")
        ));
    }
    if !measure.complete {
        why.push_str(" NOT ALL of it can be read: the repository is damaged there.");
    }
    Question {
        title: "Where should they go?".into(),
        why,
        answers: Answers::One(vec![
            Choice {
                label: "Beside, into a folder of their own".into(),
                consequences: vec![
                    "A folder that is not there yet is made, and paths are kept in it. Nothing that is there is touched.".into(),
                    "Every file is read again and compared with the snapshot.".into(),
                ],
                fact: Fact::Where(Where::Beside),
                recommended: true,
                unavailable: None,
            },
            Choice {
                label: "Back in place".into(),
                consequences: vec![
                    "Each file goes where it was, in one act. What stands there now is kept under another name.".into(),
                    "You see every path first. Can be undone. Nothing is deleted.".into(),
                ],
                fact: Fact::Where(Where::InPlace),
                recommended: false,
                unavailable: elsewhere,
            },
        ]),
    }
}

fn ask_folder(gathered: &Gathered) -> Question {
    Question {
        title: "Into which new folder?".into(),
        why: format!(
            "Give its whole path. It must not be there yet, and the folder above it must be. Empty: {}",
            text::clean(&gathered.folder)
        ),
        answers: Answers::Folder { proposed: gathered.folder.clone() },
    }
}

fn ask_policy() -> Question {
    let choice = |label: &str, consequence: &str, policy, recommended| Choice {
        label: label.into(),
        consequences: vec![consequence.into()],
        fact: Fact::Policy(policy),
        recommended,
        unavailable: None,
    };
    Question {
        title: "What becomes of files that are there now?".into(),
        why: "Files whose content is the same are left as they are, whatever is chosen.".into(),
        answers: Answers::One(vec![
            choice(
                "Bring back what is gone, and replace what changed",
                "What is replaced is kept beside it, as NAME.pre-RECOVERY.",
                Policy::MissingAndChanged,
                true,
            ),
            choice(
                "Bring back what is gone, replace only what you marked by itself",
                "In a marked folder, what is there stays, also when it changed: somebody may have written it since.",
                Policy::MissingAndMarked,
                false,
            ),
            choice(
                "Only bring back what is gone",
                "What is there stays, also when it changed.",
                Policy::Missing,
                false,
            ),
        ]),
    }
}

fn ask_own(gathered: &Gathered) -> Question {
    let strangers = gathered.strangers.iter().take(4).map(|stranger| {
        let was = if stranger.was.is_empty() { "had no name" } else { &stranger.was };
        let is = if stranger.is.is_empty() { "nobody" } else { &stranger.is };
        format!("uid {} was {}, is now {}", stranger.uid, text::clean(was), text::clean(is))
    });
    let strangers = strangers.collect::<Vec<_>>().join("; ");
    let more = gathered.strangers.len().saturating_sub(4);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let choice = |label: &str, consequence: &str, own, recommended| Choice {
        label: label.into(),
        consequences: vec![consequence.into()],
        fact: Fact::Own(own),
        recommended,
        unavailable: None,
    };
    Question {
        title: "Whose will they be?".into(),
        why: format!("Owners of the snapshot are others here: {strangers}{more}."),
        answers: Answers::One(vec![
            choice(
                "Go by names",
                "They belong to whoever has the recorded name here; by number where nobody has it.",
                Own::Names,
                true,
            ),
            choice("Go by numbers", "Exactly as recorded, whoever has that number now.", Own::Numbers, false),
            choice("Mine", "Everything belongs to the user who runs this.", Own::Me, false),
        ]),
    }
}

fn refuse(why: &str, hints: &[&str]) -> Next {
    Next::Refuse(Refusal { why: why.into(), hints: hints.iter().map(ToString::to_string).collect() })
}
