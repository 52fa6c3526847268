//! The source's half of the machine: owner, last gasp, giving up, getting back.

use super::event::{Action, Alarm, Answer, Cause, Event, Note, Request};
use super::machine::Turn;
use super::state::{Life, Mains, NodeName, OnDeath, Phase, Saved, Stage, Standing, Trigger};

impl Turn<'_> {
    /// An event on a node that owns the group or gave it up.
    pub(super) fn as_source(&mut self, event: &Event) {
        let phase = self.next.phase;
        match event {
            Event::ApplicationStarted => self.application_started(),
            Event::ApplicationDied => self.application_died(),
            Event::ApplicationExited => self.application_exited(),
            Event::ApplicationFailedToStart => self.application_failed_to_start(),
            Event::PowerLost => {
                if matches!(phase, Phase::Running | Phase::Starting) {
                    self.begin_gasp(Cause::Power);
                }
            }
            Event::PowerBack if self.next.cause == Cause::Power => self.call_off(),
            Event::OperatorLastGasp => {
                if matches!(phase, Phase::Running | Phase::Starting | Phase::Stopped) {
                    self.begin_gasp(Cause::Operator);
                }
            }
            Event::OperatorCancel => {
                if self.next.cause == Cause::Power {
                    self.next.cause = Cause::Operator;
                }
                self.next.holds_out = self.next.mains == Mains::Lost;
                self.call_off();
            }
            Event::OperatorPromote { force } => self.operator_wants_ownership(*force),
            Event::FreezeDone { round } if *round == self.next.round() => self.frozen(),
            Event::FreezeFailed { round } if *round == self.next.round() => self.kill_unfrozen(),
            Event::TailDurable { round, heir, saved } if *round == self.next.round() => {
                self.tail_durable(heir, *saved)
            }
            Event::FilesPlaced if phase == Phase::Placing => {
                self.set_stage(Stage::Placed);
                self.start_application();
            }
            Event::PlacingFailed if phase == Phase::Placing => {
                self.next.phase = Phase::Unable;
                self.alarm(Alarm::PlacingFailed);
            }
            Event::Answer(answer) => self.answered(answer),
            Event::Timeout => self.source_timeout(),
            _ => {}
        }
    }

    pub(super) fn recover_owner(&mut self, stage: Stage, rebooted: bool) {
        match self.next.application {
            _ if rebooted => {
                self.next.phase = Phase::Returned;
                self.ask();
            }
            Life::Running => {
                self.set_stage(Stage::Begun);
                self.next.phase = Phase::Running;
            }
            Life::Frozen => {
                self.set_stage(Stage::Begun);
                self.run_on();
            }
            Life::Gone => match stage {
                Stage::Promoted | Stage::Placed => self.place_or_start(),
                Stage::Begun => {
                    self.next.phase = Phase::Running;
                    self.application_died();
                }
                Stage::Ended => self.next.phase = Phase::Stopped,
            },
        }
    }

    /// The stored trigger may go out again only if nothing can have been written since it was stored: the
    /// application is still frozen, hence was held all the time. One that is gone may have been thawed by the
    /// watchdog before it ended.
    pub(super) fn recover_given_up(&mut self, saved: bool, withdrawn: bool) {
        let round = self.next.round();
        match self.next.application {
            Life::Running => {
                if let Standing::GivenUp { withdrawn, .. } = &mut self.next.durable.standing {
                    *withdrawn = true;
                }
                self.next.phase = Phase::Refreezing;
                self.act(Action::Freeze { round });
            }
            Life::Frozen if !withdrawn => {
                self.act(Action::HoldFrozen);
                self.next.phase = Phase::HandingOver;
                self.send_trigger();
                if !saved {
                    self.next.phase = Phase::Saving;
                    self.ship_tail();
                }
            }
            Life::Frozen | Life::Gone => self.cancel(),
        }
    }

    fn application_started(&mut self) {
        match self.next.phase {
            Phase::Starting | Phase::Stopped | Phase::Running => {
                self.set_stage(Stage::Begun);
                self.next.failed_starts = 0;
                if self.next.phase != Phase::Running {
                    self.next.phase = Phase::Running;
                    self.report(Note::ApplicationRuns);
                    // Power that was lost before there was anything to freeze is told of only once.
                    if self.is_to_leave() {
                        self.begin_gasp(Cause::Power);
                    }
                }
            }
            Phase::Freezing | Phase::Refreezing => {}
            // A start that was under way when the freeze was reported: freeze again, ship again.
            Phase::Saving if self.owns() => self.begin_gasp(self.next.cause),
            _ => {
                self.kill();
                self.alarm(Alarm::ApplicationNotAdmitted);
            }
        }
    }

    fn application_died(&mut self) {
        match self.next.phase {
            Phase::Running => {
                self.report(Note::ApplicationEnded);
                match self.policy.on_death {
                    OnDeath::Failover => self.begin_gasp(Cause::Death),
                    OnDeath::Restart => self.start_application(),
                    OnDeath::None => {
                        self.next.phase = Phase::Stopped;
                        self.alarm(Alarm::ApplicationDied);
                    }
                }
            }
            Phase::Freezing => self.save(),
            Phase::Refreezing => self.cancel(),
            _ => {}
        }
    }

    fn application_exited(&mut self) {
        match self.next.phase {
            Phase::Running => {
                self.stopped();
                self.report(Note::ApplicationEnded);
            }
            // An order stands, the more so now that nothing has to be frozen.
            Phase::Freezing if self.next.cause == Cause::Operator => {
                self.report(Note::ApplicationEnded);
                self.save();
            }
            Phase::Freezing => {
                self.stopped();
                self.act(Action::Thaw { generation: self.next.durable.generation });
                // A start that came while the tail was shipped led back to the freeze.
                self.act(Action::CallOffTail);
                self.report(Note::GaspCalledOff);
                self.report(Note::ApplicationEnded);
            }
            Phase::Refreezing => self.cancel(),
            _ => {}
        }
    }

    fn application_failed_to_start(&mut self) {
        match self.next.phase {
            Phase::Starting => {
                self.next.failed_starts += 1;
                if self.next.failed_starts < self.policy.start_limit {
                    self.start_application();
                } else {
                    self.next.phase = Phase::Stopped;
                    self.alarm(Alarm::StartFailed);
                }
            }
            Phase::Freezing => self.save(),
            Phase::Refreezing => self.cancel(),
            _ => {}
        }
    }

    /// Begins a last gasp under a new attempt number.
    fn begin_gasp(&mut self, cause: Cause) {
        self.next.cause = cause;
        if self.policy.heirs.is_empty() {
            self.alarm(Alarm::NoHeir);
            if cause == Cause::Death {
                self.start_application();
            } else if self.next.application == Life::Frozen {
                self.run_on();
            }
            return;
        }
        if self.heirs().is_empty() {
            self.next.passed_over.clear();
        }
        self.next.attempt += 1;
        self.report(Note::GaspBegan(cause));
        if self.next.application == Life::Gone {
            self.save();
        } else {
            self.next.phase = Phase::Freezing;
            let round = self.next.round();
            self.act(Action::Freeze { round });
        }
    }

    fn frozen(&mut self) {
        if !matches!(self.next.phase, Phase::Freezing | Phase::Refreezing) {
            return;
        }
        if self.next.application == Life::Running {
            self.next.application = Life::Frozen;
        }
        match self.next.phase {
            Phase::Freezing => self.save(),
            _ => self.cancel(),
        }
    }

    fn kill_unfrozen(&mut self) {
        if matches!(self.next.phase, Phase::Freezing | Phase::Refreezing) {
            self.alarm(Alarm::FreezeFailed);
            self.kill();
        }
    }

    /// Nothing writes any more: tell those who may be the heir, and bring them the tail.
    fn save(&mut self) {
        let round = self.next.round();
        self.next.phase = Phase::Saving;
        let heirs = self.heirs();
        match (self.policy.trigger, heirs.first()) {
            (Trigger::SaveStarted, Some(heir)) => {
                self.give_up(heir.clone(), None);
                self.send_trigger();
            }
            _ => {
                for heir in heirs {
                    self.send(Request::SaveStarted { round, heir, trigger: false });
                }
            }
        }
        self.ship_tail();
    }

    fn heirs(&self) -> Vec<NodeName> {
        self.next.heirs(&self.policy.heirs)
    }

    fn ship_tail(&mut self) {
        let (round, to) = (self.next.round(), self.heirs());
        self.act(Action::ShipTail { round, to });
    }

    fn tail_durable(&mut self, heir: &NodeName, saved: Saved) {
        // Given up to one, it is that one's whoever else has it all.
        let named = match &self.next.durable.standing {
            Standing::GivenUp { heir: named, .. } => named == heir,
            _ => true,
        };
        if self.next.phase == Phase::Saving && named {
            self.give_up(heir.clone(), Some(saved));
            self.next.phase = Phase::HandingOver;
            self.send_trigger();
        }
    }

    /// From here on only the heir's word gives the group back.
    fn give_up(&mut self, heir: NodeName, saved: Option<Saved>) {
        let owned = self.owns();
        let (attempt, cause) = (self.next.attempt, self.next.cause);
        self.next.durable.standing = Standing::GivenUp { attempt, heir, cause, saved, withdrawn: false };
        self.act(Action::HoldFrozen);
        if owned {
            self.report(Note::OwnershipGivenUp);
        }
    }

    /// Sends the trigger of the attempt that is stored, and only that.
    fn send_trigger(&mut self) {
        if let Standing::GivenUp { heir, saved, .. } = &self.next.durable.standing {
            let (round, heir) = (self.next.round(), heir.clone());
            let request = match *saved {
                Some(saved) => Request::Saved { round, heir, saved },
                None => Request::SaveStarted { round, heir, trigger: true },
            };
            self.send(request);
        }
    }

    /// The reason for the last gasp is over.
    fn call_off(&mut self) {
        match self.next.phase {
            Phase::Freezing => self.resume_uncommitted(),
            Phase::Saving if self.owns() => self.resume_uncommitted(),
            Phase::Saving | Phase::HandingOver | Phase::HandedOver => self.cancel(),
            _ => {}
        }
    }

    fn resume_uncommitted(&mut self) {
        self.act(Action::CallOffTail);
        self.report(Note::GaspCalledOff);
        self.resume();
    }

    fn cancel(&mut self) {
        self.next.phase = Phase::Cancelling;
        self.act(Action::HoldFrozen);
        self.send(Request::Cancel { round: self.next.round() });
    }

    /// The group is ours: let the application go on, unless power is still away.
    fn resume(&mut self) {
        let gone = self.next.application == Life::Gone;
        match self.next.cause {
            Cause::Operator if gone => self.stopped(),
            _ if self.is_to_leave() => self.begin_gasp(Cause::Power),
            _ if gone => self.start_application(),
            _ => self.run_on(),
        }
    }

    /// Whether external power, as last heard, is a reason not to run here.
    fn is_to_leave(&self) -> bool {
        self.next.mains == Mains::Lost && !self.next.holds_out
    }

    /// Ended as somebody wanted it; the next life of the agent is to know.
    fn stopped(&mut self) {
        self.next.phase = Phase::Stopped;
        self.set_stage(Stage::Ended);
    }

    fn run_on(&mut self) {
        self.next.application = Life::Running;
        self.next.phase = Phase::Running;
        self.act(Action::Thaw { generation: self.next.durable.generation });
    }

    fn place_or_start(&mut self) {
        match self.next.durable.standing {
            Standing::Owner { stage: Stage::Promoted, .. } => {
                self.next.phase = Phase::Placing;
                self.act(Action::PlaceFiles);
            }
            _ => self.start_application(),
        }
    }

    /// Starts the application here; with a new log, hence a new generation, if the old log is gone.
    fn start_application(&mut self) {
        if let (true, Standing::Owner { stage, .. }) = (self.next.log_lost, &self.next.durable.standing) {
            self.next.durable.standing = Standing::Owner { attempt: 0, stage: *stage };
            self.next.durable.generation = self.next.durable.generation.next();
            self.next.attempt = 0;
            self.next.log_lost = false;
        }
        self.next.phase = Phase::Starting;
        // Until it is known to have failed, something may be running.
        self.next.application = Life::Running;
        self.next.start_ordered = self.policy.has_command;
        self.act(Action::StartApplication { generation: self.next.durable.generation });
    }

    fn operator_wants_ownership(&mut self, force: bool) {
        if let Some(why) = self.next.refuses_promotion(force) {
            return self.alarm(why);
        }
        match (&self.next.durable.standing, self.next.phase) {
            (Standing::GivenUp { .. }, _) => {
                // The heir may have promoted itself to the next generation behind our back: two logs of one generation could
                // not be told apart, so that one is skipped.
                self.next.durable.generation = self.next.durable.generation.next().next();
                self.take_back(0);
            }
            (_, Phase::Returned) => self.place_or_start(),
            (_, Phase::Stopped | Phase::Unable) => {
                self.next.failed_starts = 0;
                self.place_or_start();
            }
            _ => {}
        }
    }

    /// The heir's promise may be older than a reboot of ours, and a promotion by force may lie between: ask.
    fn returned_by_heir(&mut self) {
        if self.next.log_lost {
            let attempt = self.next.attempt;
            self.next.durable.standing = Standing::Owner { attempt, stage: Stage::Begun };
            self.next.phase = Phase::Returned;
            self.ask();
        } else {
            self.take_back(self.next.attempt);
        }
    }

    fn take_back(&mut self, attempt: u32) {
        self.next.attempt = attempt;
        self.next.durable.standing = Standing::Owner { attempt, stage: Stage::Begun };
        self.act(Action::CallOffTail);
        self.report(Note::OwnershipReturned);
        self.resume();
    }

    fn answered(&mut self, answer: &Answer) {
        let given_up = !self.owns();
        let round = self.next.round();
        match *answer {
            Answer::Fenced { generation, owned }
                if generation > self.next.durable.generation
                    || owned
                        && generation == self.next.durable.generation
                        && self.next.phase == Phase::Returned =>
            {
                self.demote(generation)
            }
            Answer::Follows { life } if self.next.phase == Phase::Returned && life == self.next.life => {
                self.place_or_start()
            }
            Answer::Accepted { round: of } if of == round && self.next.phase == Phase::HandingOver => {
                self.next.phase = Phase::HandedOver;
                self.report(Note::HandedOver);
            }
            Answer::Cancelled { round: of } if given_up && of == round => self.returned_by_heir(),
            Answer::Unable { round: of } | Answer::Refused { round: of } if given_up && of == round => {
                if matches!(self.next.phase, Phase::HandingOver | Phase::HandedOver) {
                    self.pass_heir_over();
                }
            }
            Answer::Doubt { round: of, life }
                if given_up
                    && of == round
                    && matches!(self.next.phase, Phase::Saving | Phase::HandingOver | Phase::HandedOver) =>
            {
                self.send(Request::Confirm { round, life })
            }
            _ => {}
        }
    }

    /// The heir cannot take the group over: it is taken back to be handed to another one, or to go on here.
    fn pass_heir_over(&mut self) {
        let Standing::GivenUp { heir, .. } = &self.next.durable.standing else { return };
        let heir = heir.clone();
        if self.next.passed_over.insert(heir) {
            self.alarm(Alarm::HeirUnable);
        }
        let stays = self.next.cause == Cause::Power && self.next.mains != Mains::Online;
        if !stays || self.policy.heirs.iter().any(|heir| !self.next.passed_over.contains(heir)) {
            self.cancel();
        }
    }

    fn source_timeout(&mut self) {
        let round = self.next.round();
        match self.next.phase {
            Phase::Freezing | Phase::Refreezing => self.kill_unfrozen(),
            Phase::Saving => {
                self.alarm(Alarm::TailNotSaved);
                if self.owns() && self.next.cause != Cause::Power {
                    self.resume_uncommitted();
                } else {
                    self.send_trigger();
                    // Whoever is left does not get it. One that was passed over has it, and may have been mended by now.
                    self.next.passed_over.clear();
                    self.ship_tail();
                }
            }
            Phase::HandingOver | Phase::HandedOver => self.send_trigger(),
            Phase::Cancelling => self.send(Request::Cancel { round }),
            Phase::Returned => self.ask(),
            _ => {}
        }
    }

    fn ask(&mut self) {
        let (generation, life) = (self.next.durable.generation, self.next.life);
        self.send(Request::Ask { generation, life });
    }

    pub(super) fn owns(&self) -> bool {
        matches!(self.next.durable.standing, Standing::Owner { .. })
    }

    fn set_stage(&mut self, to: Stage) {
        if let Standing::Owner { stage, .. } = &mut self.next.durable.standing {
            *stage = to;
        }
    }
}
