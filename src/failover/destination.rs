//! The destination's half of the machine: following, being triggered, promoting; and what any node
//! answers to another one's requests.

use super::event::{Action, Alarm, Answer, Event, Note, Request};
use super::machine::Turn;
use super::state::{Life, Mains, Mandate, NodeName, Phase, Round, Stage, Standing, UNTRIGGERED};
use crate::types::Generation;

impl Turn<'_> {
    /// An event on a node that follows the group or is about to own it.
    pub(super) fn as_destination(&mut self, event: &Event) {
        match event {
            Event::ApplicationStarted => {
                self.kill();
                self.alarm(Alarm::ApplicationNotAdmitted);
            }
            Event::OperatorPromote { force } => match self.next.refuses_promotion(*force) {
                Some(why) => self.alarm(why),
                None if *force => self.promote_untriggered(Mandate::Force),
                None if self.next.phase == Phase::Unable => self.revoke(),
                None => {}
            },
            Event::ArbiterGranted { generation } if *generation == self.next.durable.generation => {
                self.promote_untriggered(Mandate::Arbiter)
            }
            Event::Revoked { round } if self.working_on(*round, Phase::Revoking) => self.verify(),
            Event::RevokeFailed { round } if self.working_on(*round, Phase::Revoking) => {
                self.next.phase = Phase::Unable;
                self.alarm(Alarm::RevokeFailed);
            }
            Event::ImageVerified { round } if self.working_on(*round, Phase::Verifying) => self.commit(),
            Event::ImageFailed { round } if self.working_on(*round, Phase::Verifying) => {
                self.next.phase = Phase::Unable;
                self.alarm(Alarm::ImageFailed);
            }
            Event::Synced { generation } => self.synced(*generation),
            Event::Timeout => match self.next.phase {
                Phase::SaveStarted => self.next.phase = Phase::Standby,
                Phase::AwaitingSaved => self.revoke(),
                _ => {}
            },
            _ => {}
        }
    }

    /// Answers every request exactly once.
    pub(super) fn requested(&mut self, request: &Request) {
        let asked = match request {
            Request::Ask { generation, .. } => *generation,
            Request::SaveStarted { round, .. }
            | Request::Saved { round, .. }
            | Request::Cancel { round }
            | Request::Confirm { round, .. } => round.generation,
        };
        let known = self.next.durable.generation;
        if asked < known || (asked == known && self.is_source()) {
            return self.reply(Answer::Fenced { generation: known, owned: self.is_source() });
        }
        if asked > known {
            self.follow(request, asked);
        }
        self.drop_doubtful_word();
        match request {
            Request::Ask { life, .. } => self.asked(*life),
            Request::SaveStarted { round, heir, trigger } => {
                let mandate = trigger.then_some(Mandate::SaveStarted);
                self.triggered(*round, heir, mandate)
            }
            Request::Saved { round, heir, saved } => {
                self.triggered(*round, heir, Some(Mandate::Saved(*saved)))
            }
            Request::Cancel { round } => self.cancel_asked(*round),
            Request::Confirm { round, life } => self.confirmed(*round, *life),
        }
    }

    /// Somebody owns a generation above ours. Only a question or a cancel makes us follow it: a trigger of a
    /// generation that our image does not belong to is refused.
    fn follow(&mut self, request: &Request, generation: Generation) {
        match (&self.next.durable.standing, request) {
            (
                Standing::Standby { .. } | Standing::Demoted { .. },
                Request::Ask { .. } | Request::Cancel { .. },
            ) => {
                self.next.durable.generation = generation;
            }
            (Standing::Standby { .. } | Standing::Demoted { .. }, _) => {}
            _ => self.demote(generation),
        }
    }

    /// The source lives after all, and nothing has been done yet on the word that it does not.
    fn drop_doubtful_word(&mut self) {
        if let (Standing::Triggered { round, cancelled, .. }, Phase::Doubtful) =
            (&self.next.durable.standing, self.next.phase)
            && round.attempt == UNTRIGGERED
        {
            self.next.durable.standing = Standing::Standby { cancelled: *cancelled };
            self.next.phase = Phase::Standby;
            self.report(Note::PromotionCancelled);
        }
    }

    fn asked(&mut self, life: u64) {
        match self.next.durable.standing {
            Standing::Triggered { round, .. } => self.answer_progress(round),
            _ => self.reply(Answer::Follows { life }),
        }
    }

    fn triggered(&mut self, round: Round, heir: &NodeName, mandate: Option<Mandate>) {
        if self.cancelled().is_some_and(|c| c >= round) {
            return self.reply(Answer::Cancelled { round });
        }
        match self.next.durable.standing {
            // The source gives up what we take anyway.
            Standing::Triggered { round: ours, .. } if ours.attempt == UNTRIGGERED => {
                self.reply(Answer::Accepted { round })
            }
            Standing::Triggered { round: ours, .. } if ours == round => {
                if self.next.phase == Phase::AwaitingSaved
                    && let Some(mandate @ Mandate::Saved(_)) = mandate
                {
                    self.accept(round, mandate);
                } else {
                    self.answer_progress(round);
                }
            }
            Standing::Standby { .. }
                if *heir == self.policy.node && round.generation == self.next.durable.generation =>
            {
                match mandate {
                    Some(mandate) => self.accept(round, mandate),
                    None => {
                        self.next.phase = Phase::SaveStarted;
                        self.reply(Answer::Noted { round });
                        self.act(Action::Prepare);
                    }
                }
            }
            _ => self.reply(Answer::Refused { round }),
        }
    }

    fn accept(&mut self, round: Round, mandate: Mandate) {
        let cancelled = self.cancelled();
        self.next.durable.standing = Standing::Triggered { round, mandate, cancelled };
        self.reply(Answer::Accepted { round });
        self.proceed();
    }

    /// Takes up a mandate that is stored.
    pub(super) fn proceed(&mut self) {
        match self.next.durable.standing {
            Standing::Triggered { mandate: Mandate::SaveStarted, .. } => {
                self.next.phase = Phase::AwaitingSaved;
                self.act(Action::Prepare);
            }
            _ => self.revoke(),
        }
    }

    fn revoke(&mut self) {
        if let Standing::Triggered { round, .. } = self.next.durable.standing {
            self.next.phase = Phase::Revoking;
            self.act(Action::Revoke { round });
        }
    }

    fn verify(&mut self) {
        if let Standing::Triggered { round, mandate, .. } = self.next.durable.standing {
            self.next.phase = Phase::Verifying;
            self.act(Action::Verify { round, mandate });
        }
    }

    /// The point of no return: stored, the group is ours under the next generation.
    fn commit(&mut self) {
        self.next.durable.generation = self.next.durable.generation.next();
        self.next.durable.standing = Standing::Owner { attempt: 0, stage: Stage::Promoted };
        self.next.attempt = 0;
        self.next.failed_starts = 0;
        self.next.log_lost = false;
        self.next.phase = Phase::Placing;
        self.report(Note::Promoted);
        self.next.holds_out = self.next.mains == Mains::Lost;
        if self.next.holds_out {
            // Whoever handed it over is likely to be on battery as well: it would come back at once, and so on.
            self.alarm(Alarm::TakenOverOnBattery);
        }
        self.act(Action::PlaceFiles);
    }

    fn cancel_asked(&mut self, round: Round) {
        match self.next.durable.standing {
            Standing::Triggered { round: ours, cancelled, .. } if ours == round => {
                self.next.durable.standing = Standing::Standby { cancelled: cancelled.max(Some(round)) };
                self.next.phase = Phase::Standby;
                self.reply(Answer::Cancelled { round });
                self.report(Note::PromotionCancelled);
            }
            Standing::Triggered { round: ours, .. } => self.answer_progress(ours),
            _ => {
                self.promise(round);
                if self.next.phase == Phase::SaveStarted {
                    self.next.phase = Phase::Standby;
                }
                self.reply(Answer::Cancelled { round });
            }
        }
    }

    fn confirmed(&mut self, round: Round, life: u64) {
        match self.next.durable.standing {
            Standing::Triggered { round: ours, .. } if ours == round => {
                if self.next.phase == Phase::Doubtful && life == self.next.life {
                    self.reply(Answer::Accepted { round });
                    self.proceed();
                } else {
                    self.answer_progress(round);
                }
            }
            _ if self.cancelled().is_some_and(|c| c >= round) => self.reply(Answer::Cancelled { round }),
            _ => self.reply(Answer::Refused { round }),
        }
    }

    fn answer_progress(&mut self, round: Round) {
        let life = self.next.life;
        self.reply(match self.next.phase {
            Phase::Doubtful => Answer::Doubt { round, life },
            Phase::Unable => Answer::Unable { round },
            _ => Answer::Accepted { round },
        });
    }

    fn promote_untriggered(&mut self, mandate: Mandate) {
        match self.next.durable.standing {
            Standing::Demoted { .. } => self.alarm(Alarm::NoImage),
            Standing::Standby { cancelled } | Standing::Triggered { cancelled, .. }
                if !matches!(self.next.phase, Phase::Revoking | Phase::Verifying) =>
            {
                let round = Round { generation: self.next.durable.generation, attempt: UNTRIGGERED };
                self.next.durable.standing = Standing::Triggered { round, mandate, cancelled };
                self.revoke();
            }
            _ => {}
        }
    }

    fn synced(&mut self, generation: Generation) {
        if let Standing::Demoted { cancelled } = self.next.durable.standing
            && generation == self.next.durable.generation
            && self.next.application == Life::Gone
        {
            self.next.durable.standing = Standing::Standby { cancelled };
            self.next.phase = Phase::Standby;
        }
    }

    fn working_on(&self, round: Round, phase: Phase) -> bool {
        self.next.phase == phase
            && matches!(self.next.durable.standing, Standing::Triggered { round: ours, .. } if ours == round)
    }

    fn is_source(&self) -> bool {
        matches!(self.next.durable.standing, Standing::Owner { .. } | Standing::GivenUp { .. })
    }

    /// Highest round that we promised never to act on.
    pub(super) fn cancelled(&self) -> Option<Round> {
        match self.next.durable.standing {
            Standing::Standby { cancelled }
            | Standing::Triggered { cancelled, .. }
            | Standing::Demoted { cancelled } => cancelled,
            Standing::Owner { .. } | Standing::GivenUp { .. } => None,
        }
    }

    fn promise(&mut self, round: Round) {
        if let Standing::Standby { cancelled } | Standing::Demoted { cancelled } =
            &mut self.next.durable.standing
        {
            *cancelled = (*cancelled).max(Some(round));
        }
    }
}
