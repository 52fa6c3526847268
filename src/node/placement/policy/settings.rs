//! The policy's numbers. Tuned in the simulator, whose own figures stand apart from them.

/// Shares are of a package, 0 to 1; times are in epochs.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Load from which on a package is relieved.
    pub high: f64,
    /// Load below which it is little used.
    pub low: f64,
    /// R from which on it is left alone.
    pub efficient: f64,
    /// Load below which a package without groups counts as parked.
    pub parked: f64,
    /// Load that a package is filled to at most.
    pub fill: f64,
    /// Load to which relieving brings a package down.
    pub relieved: f64,
    /// Load, in a look of the guard, at which a package is relieved at once.
    pub urgent: f64,
    /// Load, in a look of the guard, at which a package is relieved at once if it was less by [`Settings::jump`] in the last epoch.
    pub rising: f64,
    /// See [`Settings::rising`].
    pub jump: f64,
    /// Epochs for which a class must have been the same before it is acted on.
    pub stable: u64,
    /// Epochs after a move in which neither its packages nor its groups are moved again, but to relieve. At their end the
    /// move is judged.
    pub cool_down: u64,
    /// Epochs for which a group's highest load is reckoned with.
    pub memory: usize,
    /// How much R of a drained package must have risen.
    pub gain: f64,
    /// How much a group's pressure may have risen.
    pub pressure: f64,
    /// Factor by which a group's p99 may have grown.
    pub p99: f64,
    /// Epochs before a package whose draining was undone is drained again; doubled each time, up to [`Settings::longest`].
    pub back_off: u64,
    /// Epochs without draining after the guard had to step in for a load that had grown steadily.
    pub rest: u64,
    /// The same after a load that came out of nothing; times [`Settings::calmer`] each time, up to the longest.
    pub calm: u64,
    /// See [`Settings::calm`].
    pub calmer: u64,
    /// Longest back-off.
    pub longest: u64,
    /// Epochs for which loads must have been seen before all but one package are emptied: then no other is awake to help.
    pub lone: u64,
    /// Whether medium packages are drained when everything fits.
    pub drain_medium: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            high: 0.65,
            low: 0.15,
            efficient: 0.75,
            parked: 0.02,
            fill: 0.60,
            relieved: 0.50,
            urgent: 0.85,
            rising: 0.50,
            jump: 0.18,
            stable: 2,
            cool_down: 4,
            memory: 128,
            gain: 0.05,
            pressure: 0.05,
            p99: 1.25,
            back_off: 8,
            rest: 32,
            calm: 512,
            calmer: 4,
            longest: 4096,
            lone: 48,
            drain_medium: true,
        }
    }
}
