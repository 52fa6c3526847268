//! What a group's state machine hears and what it wants done.

use serde::{Deserialize, Serialize};

use super::state::{Durable, Life, Mandate, NodeName, Round, Saved};
use crate::types::Generation;

/// Why a source hands its group over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// External power failed; its return calls the handover off.
    Power,
    /// The application died.
    Death,
    /// The operator said so.
    Operator,
}

/// What a source (or an owner that returned) asks the other node. Every one may be repeated at will.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The last gasp has begun.
    SaveStarted {
        /// The attempt.
        round: Round,
        /// Who is to run the application.
        heir: NodeName,
        /// Whether this is the start trigger: ownership was given up before it was sent.
        trigger: bool,
    },
    /// The last gasp is complete; the start trigger, unless `save-started` was.
    Saved {
        /// The attempt.
        round: Round,
        /// Who is to run the application.
        heir: NodeName,
        /// What must be there.
        saved: Saved,
    },
    /// The source wants the group back.
    Cancel {
        /// The attempt that must never be acted on.
        round: Round,
    },
    /// Answers [`Answer::Doubt`]: the attempt still holds.
    Confirm {
        /// The attempt.
        round: Round,
        /// The number from the doubt.
        life: u64,
    },
    /// "I hold that I own this generation. What do you know?"
    Ask {
        /// The asker's generation.
        generation: Generation,
        /// Comes back in [`Answer::Follows`].
        life: u64,
    },
}

/// What the other node answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// Heard; nothing rests on it.
    Noted {
        /// The attempt.
        round: Round,
    },
    /// Durably triggered.
    Accepted {
        /// The attempt.
        round: Round,
    },
    /// Durably promised never to act on this attempt.
    Cancelled {
        /// The attempt.
        round: Round,
    },
    /// Triggered, and the image cannot be promoted: better take it back.
    Unable {
        /// The attempt.
        round: Round,
    },
    /// Triggered and rebooted since: does the attempt still hold?
    Doubt {
        /// The attempt.
        round: Round,
        /// To be returned in [`Request::Confirm`].
        life: u64,
    },
    /// We own nothing and know of no higher generation than the asker's.
    Follows {
        /// From the question.
        life: u64,
    },
    /// We know of this generation, and the asker's is not above it.
    Fenced {
        /// The generation.
        generation: Generation,
        /// Whether it is ours; else we only follow it, and it may be the asker's own.
        owned: bool,
    },
    /// Not for us: another node is named, or we have no image.
    Refused {
        /// The attempt.
        round: Round,
    },
}

/// What happened. Events of operations that an [`Action`] began name its round, so that a late one is told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// The agent started (first event of every life): what it found of the application.
    Recovered {
        /// Processes of the application.
        application: Life,
        /// An unrepeatable number.
        life: u64,
    },
    /// A process of the application runs: started by us or attached by itself.
    ApplicationStarted,
    /// It could not be started.
    ApplicationFailedToStart,
    /// No process of the application is left, and its end was a failure.
    ApplicationDied,
    /// No process of the application is left, and it ended as it should.
    ApplicationExited,
    /// External power failed.
    PowerLost,
    /// External power is there.
    PowerBack,
    /// Operator: last gasp now.
    OperatorLastGasp,
    /// Operator: call the last gasp off.
    OperatorCancel,
    /// Operator: own the group here. `force`: my word that the other node is dead.
    OperatorPromote {
        /// Whether the word is given.
        force: bool,
    },
    /// The arbiter says that the source of this generation is gone and fenced, and that we are the one. No arbiter is built
    /// in yet, so nothing tells this.
    ArbiterGranted {
        /// The generation that is over.
        generation: Generation,
    },
    /// Nothing of the application can run any more.
    FreezeDone {
        /// From [`Action::Freeze`].
        round: Round,
    },
    /// Freezing cannot succeed.
    FreezeFailed {
        /// From [`Action::Freeze`].
        round: Round,
    },
    /// Everything published is durable at a destination, which may be the heir.
    TailDurable {
        /// From [`Action::ShipTail`].
        round: Round,
        /// Where.
        heir: NodeName,
        /// What.
        saved: Saved,
    },
    /// The source's access has been taken away; nothing of its can land any more.
    Revoked {
        /// From [`Action::Revoke`].
        round: Round,
    },
    /// It could not be taken away: something of its may still land.
    RevokeFailed {
        /// From [`Action::Revoke`].
        round: Round,
    },
    /// The image holds what the mandate names, its digest fits and it can be opened here.
    ImageVerified {
        /// From [`Action::Verify`].
        round: Round,
    },
    /// It does not.
    ImageFailed {
        /// From [`Action::Verify`].
        round: Round,
    },
    /// The regions are where the application opens them.
    FilesPlaced,
    /// They could not be put there.
    PlacingFailed,
    /// A sync of the present generation is complete and durable: there is an image to promote.
    Synced {
        /// Generation of the source that synced us.
        generation: Generation,
    },
    /// The other node asks.
    Request(Request),
    /// The other node answered.
    Answer(Answer),
    /// [`super::Policy::patience`] of the phase is over. It is counted anew after each.
    Timeout,
}

/// What is to be done, in the order given. Plain orders: each may be repeated, none waits for its result,
/// which comes as an event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Store this durably. Always first; nothing after it may be done before it is durable.
    Persist(Durable),
    /// Freeze the application; until [`Action::HoldFrozen`], the death of the agent thaws it.
    Freeze {
        /// For the event.
        round: Round,
    },
    /// Let a frozen application run again, or undo a freeze that is under way; its log goes on under this generation.
    Thaw {
        /// The generation.
        generation: Generation,
    },
    /// From here on the application stays frozen whatever becomes of the agent.
    HoldFrozen,
    /// Kill every process of the application; its end is reported as its death.
    Kill,
    /// Bring everything published to the destinations, then report which of some holds it: the first that does.
    ShipTail {
        /// For the event.
        round: Round,
        /// Those that may be the heir.
        to: Vec<NodeName>,
    },
    /// Nobody wants the tail any more: stop bringing it, and record again what no program asked for.
    CallOffTail,
    /// Ask the other node (the heir, if we are a source that gave up).
    Send(Request),
    /// Answer the other node.
    Reply(Answer),
    /// The source's last gasp has begun: make room, check compatibility, be awake.
    Prepare,
    /// Take the source's access away.
    Revoke {
        /// For the event.
        round: Round,
    },
    /// Fix the promotion LSN, apply what landed, verify.
    Verify {
        /// For the event.
        round: Round,
        /// What must be there; without `saved`, what is durable here.
        mandate: Mandate,
    },
    /// Put the regions where the application opens them.
    PlaceFiles,
    /// Start the application; with a log of this generation.
    StartApplication {
        /// The generation.
        generation: Generation,
    },
    /// For the operator's event stream.
    Report(Note),
    /// For the operator, now.
    Alarm(Alarm),
}

/// Milestones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// A last gasp began.
    GaspBegan(Cause),
    /// It was called off before ownership was given up.
    GaspCalledOff,
    /// Ownership was given up.
    OwnershipGivenUp,
    /// The heir has accepted.
    HandedOver,
    /// The heir has cancelled: the group is ours again.
    OwnershipReturned,
    /// We are the owner of a new generation.
    Promoted,
    /// The application runs here.
    ApplicationRuns,
    /// We found ourselves to be the owner of the past.
    Demoted,
    /// We promised the source never to act on its attempt.
    PromotionCancelled,
    /// The application ended.
    ApplicationEnded,
}

/// What a person has to know or do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alarm {
    /// No heir is configured: nothing to hand over to.
    NoHeir,
    /// The tail is not at the heir, which therefore cannot take over, and the time for bringing it there is over.
    TailNotSaved,
    /// The application did not freeze in time and was killed.
    FreezeFailed,
    /// The source's access could not be taken away.
    RevokeFailed,
    /// The image could not be verified.
    ImageFailed,
    /// The regions could not be placed.
    PlacingFailed,
    /// The application did not start as often as allowed.
    StartFailed,
    /// The application died, and nothing is to be done about it.
    ApplicationDied,
    /// A process of the application appeared where it must not run; it was killed.
    ApplicationNotAdmitted,
    /// The other node owns a generation while our application ran in an older one: ours was killed.
    SplitBrain,
    /// Promotion refused: no mandate. Use `--force` if the source is dead.
    NoMandate,
    /// Promotion refused: no complete image here.
    NoImage,
    /// The heir cannot promote its image.
    HeirUnable,
    /// Promoted while external power is lost here as well.
    TakenOverOnBattery,
    /// Regions of the image have no place here. Raised by the agent: the machine never hears of it.
    RegionsUnplaced,
    /// The other node has a group of this name that is another one. Raised by the agent: the machine never hears of it.
    AnotherGroup,
    /// A program goes on with a log that is lost to this owner, and must end first. Raised by the agent: the machine never hears of it.
    EarlierProgram,
    /// The group could not be opened when the agent was started. Raised by the agent: there is no machine.
    Unusable,
    /// Two nodes own the same generation: one was promoted by force while the group was handed to the other. Raised by the agent.
    TwoOwners,
}

impl Alarm {
    /// What happened and what to do, for a person.
    pub fn message(self) -> &'static str {
        match self {
            Alarm::NoHeir => {
                "no heir is configured for this group: it stays here until the power ends; name one in `destinations`"
            }
            Alarm::TailNotSaved => {
                "the log's tail is not at the heir yet, so the heir cannot take over: check the network and the heir's agent"
            }
            Alarm::FreezeFailed => {
                "the application did not freeze in time and was killed; the handover goes on"
            }
            Alarm::RevokeFailed => {
                "not promoted: the adapter here cannot be kept from taking the source's writes; stop pmemhad on this node and start it again, which ends them for certain, then `pmemha promote`"
            }
            Alarm::ImageFailed => {
                "the image here cannot become the application's files: mend what is said here, then `pmemha promote`; or take the group back at the source (`pmemha cancel`); `pmemha promote --force` does without what `saved` names and loses the difference"
            }
            Alarm::PlacingFailed => {
                "the regions could not be put where the application opens them: mend the cause (space, permissions), then `pmemha promote`"
            }
            Alarm::StartFailed => {
                "the application failed to start as often as allowed: mend its command, then `pmemha promote`"
            }
            Alarm::ApplicationDied => {
                "the application died and `on_death = \"none\"`: start it again by hand"
            }
            Alarm::ApplicationNotAdmitted => {
                "a process of the application appeared on a node that does not own the group and was killed"
            }
            Alarm::SplitBrain => {
                "another node owns a newer generation while the application ran here: it was killed here; what it wrote since is on this node only"
            }
            Alarm::NoMandate => {
                "not promoted: the source has not handed the group over; if it is dead, and no other destination has taken over, say so with `pmemha promote --force`"
            }
            Alarm::NoImage => {
                "not promoted: this node has no complete image of the group; promote another one"
            }
            Alarm::EarlierProgram => {
                "a program of this group still writes to an earlier log, which nothing ships: end it; the application is started once it has ended"
            }
            Alarm::HeirUnable => {
                "the heir cannot promote its image: on battery the group is handed to another destination, or kept for this one where there is none; otherwise it is taken back and goes on here"
            }
            Alarm::TakenOverOnBattery => {
                "taken over while external power is lost here as well: the application runs here until the battery ends; `pmemha last-gasp` hands it on to a node that has power"
            }
            Alarm::RegionsUnplaced => {
                "regions of the image have no place in `paths` of this replica and were put into its directory: move those that the application needs to where it opens them, and add their places to `paths`"
            }
            Alarm::AnotherGroup => {
                "the other node has a group of this name that is not this one: both began as its first owner, or the state of one was cleared; neither protects the other, and both may run the application. Keep the node whose files are right; on the other one stop pmemhad, remove the `[[group]]`, and move `groups/NAME` out of its state_dir"
            }
            Alarm::Unusable => {
                "the group could not be opened and is not protected: mend the cause and restart pmemhad"
            }
            Alarm::TwoOwners => {
                "another node owns this generation of the group, too: one of the two was promoted by force while the other took over. Decide whose files are right; on the other stop the application and pmemhad, remove the `[[group]]` there, move `groups/NAME` out of `state_dir`, and start pmemhad again: it follows then"
            }
        }
    }
}
