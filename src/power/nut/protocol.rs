//! What upsd says, a line at a time, and what the words of `ups.status` mean. Pure.
//!
//! Nothing of a line is taken on trust: one that is not exactly an answer to what was asked is [`Garbage`], and a status in which
//! neither `OL` nor `OB` stands, or that names a battery that does not protect, is never taken for more than it says.

use std::time::{Duration, Instant};

use super::super::PowerState;

/// One line of upsd, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `OK`, with or without more words.
    Done,
    /// `VAR ups name "value"`.
    Variable {
        /// The UPS that it is of.
        ups: String,
        /// The variable.
        name: String,
        /// Its value, unescaped.
        value: String,
    },
    /// `ERR CODE`, with or without more words.
    Refused(String),
}

/// Why a line is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Garbage {
    /// It ends within a quoted word.
    #[error("a quoted word without an end")]
    OpenQuote,
    /// It holds control characters.
    #[error("control characters")]
    Control,
    /// It is none of the answers that we know.
    #[error("no answer of upsd's")]
    Unknown,
}

/// Takes a line without its newline apart.
pub fn answer(line: &str) -> Result<Answer, Garbage> {
    let mut words = words(line)?.into_iter();
    match (words.next().as_deref(), words.next(), words.next(), words.next(), words.next()) {
        (Some("OK"), ..) => Ok(Answer::Done),
        (Some("ERR"), Some(code), ..) => Ok(Answer::Refused(code)),
        (Some("VAR"), Some(ups), Some(name), Some(value), None) => Ok(Answer::Variable { ups, name, value }),
        _ => Err(Garbage::Unknown),
    }
}

/// The words of a line: separated by blanks, or in double quotes with `\` before a quote or a backslash.
fn words(line: &str) -> Result<Vec<String>, Garbage> {
    if line.chars().any(char::is_control) {
        return Err(Garbage::Control);
    }
    let (mut words, mut chars) = (Vec::new(), line.chars().peekable());
    while let Some(first) = chars.next() {
        match first {
            ' ' => {}
            '"' => {
                let mut word = String::new();
                loop {
                    match chars.next().ok_or(Garbage::OpenQuote)? {
                        '"' => break,
                        '\\' => word.push(chars.next().ok_or(Garbage::OpenQuote)?),
                        c => word.push(c),
                    }
                }
                words.push(word);
            }
            c => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| *c != ' ') {
                    word.push(c);
                }
                words.push(word);
            }
        }
    }
    Ok(words)
}

/// `word` as it is sent: in quotes where it needs them.
pub fn quoted(word: &str) -> String {
    let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_graphic() && c != '"' && c != '\\');
    if plain {
        return word.into();
    }
    let escaped: String = word
        .chars()
        .flat_map(|c| ['\\'].into_iter().filter(move |_| c == '"' || c == '\\').chain([c]))
        .collect();
    format!("\"{escaped}\"")
}

/// What upsd said of a UPS: `None` for what the UPS does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// `ups.status`
    pub status: String,
    /// `battery.runtime`
    pub runtime: Option<String>,
    /// `battery.runtime.low`
    pub runtime_low: Option<String>,
    /// `battery.charge`
    pub charge: Option<String>,
}

/// What a reading means.
///
/// `OB` or `FSD` (the UPS is about to be switched off): external power is lost, whatever else stands there. `OL`: it is there.
/// `LB`: no more than `battery.runtime.low` is left. `BYPASS` and `OFF`: the battery carries nothing. Neither `OL` nor `OB`: unknown.
pub fn meaning(reading: &Reading, now: Instant) -> PowerState {
    let has = |word: &str| reading.status.split_ascii_whitespace().any(|w| w == word);
    let mut state = PowerState::silent(now);
    state.online = match (has("OB") || has("FSD"), has("OL")) {
        (true, _) => Some(false),
        (false, true) => Some(true),
        (false, false) => None,
    };
    state.low = has("LB") || has("FSD");
    let mut faults = Vec::new();
    if state.online.is_none() {
        faults.push(format!("ups.status is `{}`, neither OL nor OB", reading.status));
    }
    let mut number = |name: &str, text: &Option<String>| {
        let text = text.as_ref()?;
        let number = text.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
        if number.is_none() {
            faults.push(format!("{name} is `{text}`, no number"));
        }
        number
    };
    let seconds = |s: Option<f64>| s.and_then(|s| Duration::try_from_secs_f64(s).ok());
    state.runtime = seconds(number("battery.runtime", &reading.runtime));
    let least = seconds(number("battery.runtime.low", &reading.runtime_low));
    let charge = number("battery.charge", &reading.charge);
    state.charge = charge.filter(|c| *c <= 100.0).map(|c| (c / 100.0) as f32);
    if charge.is_some() && state.charge.is_none() {
        faults.push("battery.charge is above 100".into());
    }
    if state.low {
        state.runtime = [state.runtime, least].into_iter().flatten().min();
    }
    for (word, what) in [("BYPASS", "the UPS is bypassed"), ("OFF", "the UPS is switched off")] {
        if has(word) {
            faults.push(format!("{what}: its battery carries nothing"));
            state.runtime = Some(Duration::ZERO);
        }
    }
    if has("RB") {
        faults.push("the UPS wants its battery replaced".into());
    }
    state.fault = (!faults.is_empty()).then(|| faults.join("; "));
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn status(words: &str) -> PowerState {
        meaning(&Reading { status: words.into(), ..Reading::default() }, Instant::now())
    }

    #[test]
    fn answers_are_taken_apart() {
        let variable = |value: &str| Answer::Variable {
            ups: "lab".into(),
            name: "ups.status".into(),
            value: value.into(),
        };
        assert_eq!(answer("VAR lab ups.status \"OB DISCHRG\""), Ok(variable("OB DISCHRG")));
        assert_eq!(answer("VAR lab ups.status \"a \\\"b\\\" \\\\c\""), Ok(variable("a \"b\" \\c")));
        assert_eq!(answer("ERR DATA-STALE"), Ok(Answer::Refused("DATA-STALE".into())));
        assert_eq!(answer("OK Goodbye"), Ok(Answer::Done));
        assert_eq!(answer("VAR lab ups.status \"OL"), Err(Garbage::OpenQuote));
        for line in ["", "VAR lab ups.status", "VAR lab ups.status \"OL\" \"OB\"", "ol", "ERR"] {
            assert_eq!(answer(line), Err(Garbage::Unknown), "{line}");
        }
        assert_eq!(answer("OK\r"), Err(Garbage::Control));
    }

    #[test]
    fn the_words_of_a_status_are_understood() {
        for (words, online, low) in [
            ("OL", Some(true), false),
            ("OL CHRG LB", Some(true), true),
            ("OB DISCHRG", Some(false), false),
            ("OB LB DISCHRG", Some(false), true),
            ("FSD OL", Some(false), true),
            ("OL OB", Some(false), false),
            ("", None, false),
            ("WAIT", None, false),
            ("OFFLINE OLD OBSERVED", None, false),
        ] {
            let state = status(words);
            assert_eq!((state.online, state.low), (online, low), "{words}");
            assert_eq!(state.fault.is_some(), online.is_none(), "{words}: {state:?}");
        }
        for words in ["OL BYPASS", "OL OFF"] {
            assert_eq!(status(words).runtime, Some(Duration::ZERO), "{words}");
        }
        assert!(status("OL RB").fault.unwrap().contains("replaced"));
    }

    #[test]
    fn a_low_battery_lasts_no_longer_than_what_low_means() {
        let reading = |status: &str| Reading {
            status: status.into(),
            runtime: Some("900".into()),
            runtime_low: Some("120".into()),
            charge: Some("80".into()),
        };
        let now = Instant::now();
        assert_eq!(meaning(&reading("OB"), now).runtime, Some(Duration::from_secs(900)));
        let low = meaning(&reading("OB LB"), now);
        assert_eq!((low.runtime, low.charge), (Some(Duration::from_secs(120)), Some(0.8)));
        let garbage = Reading { runtime: Some("-1".into()), charge: Some("101".into()), ..reading("OL") };
        let state = meaning(&garbage, now);
        assert_eq!((state.online, state.runtime, state.charge), (Some(true), None, None));
        assert!(state.fault.unwrap().contains("battery.runtime is `-1`"));
    }

    proptest! {
        #[test]
        fn no_line_is_taken_for_more_than_it_says(line in "\\PC{0,60}") {
            if let Ok(Answer::Variable { value, .. }) = answer(&line) {
                prop_assert!(line.starts_with("VAR ") || line.trim_start().starts_with("VAR "));
                prop_assert!(value.len() <= line.len());
            }
        }

        #[test]
        fn what_is_quoted_is_read_as_it_was(word in "[ -~]{0,30}") {
            let line = format!("VAR {} {} {}", quoted("lab"), quoted("v"), quoted(&word));
            let read = Answer::Variable { ups: "lab".into(), name: "v".into(), value: word };
            prop_assert_eq!(answer(&line), Ok(read));
        }

        #[test]
        fn only_the_word_itself_means_that_there_is_power(
            words in prop::collection::vec("(OL|OB|LB|FSD|CHRG|[A-Z]{0,4})", 0..6),
            runtime in prop::option::of("\\PC{0,12}"),
        ) {
            let reading = Reading { status: words.join(" "), runtime, ..Reading::default() };
            let online = meaning(&reading, Instant::now()).online;
            let is = |word: &str| words.iter().any(|w| w == word);
            prop_assert_eq!(online == Some(true), is("OL") && !is("OB") && !is("FSD"));
            prop_assert_eq!(online == Some(false), is("OB") || is("FSD"));
        }
    }
}
