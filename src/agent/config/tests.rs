use super::units::exact_bytes;
use super::*;
use crate::log::OnFull;
use crate::types::Level;
use proptest::prelude::*;
use std::time::Duration;

const WHOLE: &str = r#"
[node]
name = "alpha"
state_dir = "/var/lib/pmemha"
runtime_dir = "/run/pmemha"
keeper = "holder"
listen = "10.0.0.1:7475"
data_listen = "10.0.0.1:7476"

[tls]
ca = "/etc/pmemha/ca.pem"
cert = "/etc/pmemha/alpha.pem"
key = "/etc/pmemha/alpha.key"

[power]
source = "file"
path = "/run/power/online"

[metrics]
listen = "127.0.0.1:9475"

[largepages]
threshold = 100
budget = 4
period = "2s"

[rdma]
device = "mlx5_0"
port = 1
gid_index = 3

[[peer]]
name = "beta"
address = "beta.example:7475"

[[group]]
name = "db"
protect = ["/mnt/pmem/db/*.pool"]
users = ["postgres", 1000]
log_size = "64MiB"
on_full = "block"
block_limit = "250ms"
commit = "durable"
commit_timeout = "5s"
destinations = ["beta"]
sync_rate = "100MiB/s"
archive = { dir = "/srv/archive/db", keep_bytes = "10GiB", keep_age = "7d" }
on_death = "failover"
trigger = "saved"
freeze_deadline = "500ms"
command = ["/usr/bin/db", "--pool", "/mnt/pmem/db/a.pool"]
user = "postgres"
working_dir = "/mnt/pmem/db"
env = { DB_MODE = "fast" }

[[replica]]
group = "web"
from = ["beta"]
dir = "/srv/replica/web"
durability = "auto"
paths = { "/mnt/pmem/web" = "/mnt/pmem/web" }
start = ["/usr/bin/web"]
user = 1000
fabric = "tcp"
encrypt = false
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("t.conf"))
}

/// The whole configuration with one line replaced: problems must point to that line.
fn problems_with(line: &str, instead: &str) -> Vec<Problem> {
    assert!(WHOLE.contains(line), "{line}");
    match parse(&WHOLE.replacen(line, instead, 1)) {
        Err(ConfigError::Wrong(problems)) => problems,
        other => panic!("`{instead}` was not refused: {other:?}"),
    }
}

fn line_of(line: &str) -> usize {
    WHOLE.lines().position(|l| l == line).unwrap() + 1
}

#[test]
fn every_documented_key_is_read() {
    let c = parse(WHOLE).unwrap();
    let g = &c.groups[0];
    assert_eq!((g.log_size, g.commit, g.on_full), (64 << 20, Level::Durable, OnFull::Block));
    assert_eq!((g.block_limit, g.commit_timeout), (Duration::from_millis(250), Duration::from_secs(5)));
    assert_eq!(g.users, [UserRef::Name("postgres".into()), UserRef::Id(1000)]);
    assert_eq!(g.archive.as_ref().unwrap().keep_age, Some(Duration::from_secs(7 * 86400)));
    assert_eq!(g.sync_rate, Some(100 << 20));
    assert!(!c.replicas[0].encrypted());
    assert_eq!(c.replicas[0].fabric, FabricKind::Tcp);
    assert_eq!(c.rdma, Rdma { device: Some("mlx5_0".into()), port: Some(1), gid_index: Some(3) });
    assert_eq!(c.address_of("beta").unwrap(), "beta.example:7475");
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
    let p = &problems_with("log_size = \"64MiB\"", "log_sise = \"64MiB\"")[0];
    assert_eq!((p.line, p.key.as_str()), (line_of("log_size = \"64MiB\""), "group[0].log_sise"));
    assert!(p.to_string().contains("did you mean `log_size`?"), "{p}");
}

#[test]
fn a_bad_value_is_named_with_its_line_key_and_remedy() {
    for (line, instead, key, remedy) in [
        ("log_size = \"64MiB\"", "log_size = \"64MB\"", "group[0].log_size", "KiB, MiB"),
        ("log_size = \"64MiB\"", "log_size = \"65MiB\"", "group[0].log_size", "use \"128MiB\""),
        ("log_size = \"64MiB\"", "log_size = \"8GiB\"", "group[0].log_size", "use \"4GiB\""),
        ("commit = \"durable\"", "commit = \"durabel\"", "group[0].commit", "did you mean `durable`?"),
        ("commit_timeout = \"5s\"", "commit_timeout = 5", "group[0].commit_timeout", "expected a string"),
        ("commit_timeout = \"5s\"", "commit_timeout = \"48h\"", "group[0].commit_timeout", "shorter"),
        ("port = 1", "port = 0", "rdma.port", "counted from 1"),
        ("fabric = \"tcp\"", "fabric = \"vebrs\"", "replica[0].fabric", "did you mean `verbs`?"),
        ("sync_rate = \"100MiB/s\"", "sync_rate = \"100MiB\"", "group[0].sync_rate", "MiB/s"),
        ("sync_rate = \"100MiB/s\"", "sync_rate = \"0B/s\"", "group[0].sync_rate", "above 0"),
        ("block_limit = \"250ms\"", "block_limit = \"forever\"", "group[0].block_limit", "no duration"),
        (
            "destinations = [\"beta\"]",
            "destinations = [\"gamma\"]",
            "group[0].destinations[0]",
            "known: beta",
        ),
        ("destinations = [\"beta\"]", "destinations = []", "group[0].commit", "destinations"),
        (
            "destinations = [\"beta\"]",
            "destinations = []\nbudget = \"enforce\"",
            "group[0].budget",
            "name one in destinations",
        ),
        (
            "destinations = [\"beta\"]",
            "destinations = [\"alpha\"]",
            "group[0].destinations[0]",
            "another node",
        ),
        ("from = [\"beta\"]", "from = [\"beta\", \"alpha\"]", "replica[0].from[1]", "other nodes"),
        ("name = \"alpha\"", "name = \"al/pha\"", "node.name", "letters"),
        ("address = \"beta.example:7475\"", "address = \"beta\"", "peer[0].address", "host:port"),
        ("dir = \"/srv/replica/web\"", "dir = \"/srv/archive/db/web\"", "replica[0].dir", "of its own"),
        ("dir = \"/srv/replica/web\"", "dir = \"srv\"", "replica[0].dir", "from `/` on"),
        ("from = [\"beta\"]", "from = [\"delta\"]", "replica[0].from[0]", "[[peer]]"),
        ("start = [\"/usr/bin/web\"]", "start = [\"web\"]", "replica[0].start", "full path"),
        ("protect = [\"/mnt/pmem/db/*.pool\"]", "protect = [\"/mnt/[\"]", "group[0].protect[0]", "glob(7)"),
        ("protect = [\"/mnt/pmem/db/*.pool\"]", "protect = [\"/srv/**\"]", "replica[0].dir", "narrow"),
        ("listen = \"10.0.0.1:7475\"", "", "node.listen", "such as"),
        ("users = [\"postgres\", 1000]", "users = [1.5]", "group[0].users[0]", "as a uid"),
        ("commit_timeout = \"5s\"", "commit_timeout = 5", "group[0].commit_timeout", "in quotes"),
        ("listen = \"127.0.0.1:9475\"", "listen = \"here\"", "metrics.listen", "\"127.0.0.1:9475\""),
        ("listen = \"127.0.0.1:9475\"", "listen = 9475", "metrics.listen", "in quotes"),
        ("threshold = 100", "threshold = 513", "largepages.threshold", "1 to 512"),
        ("budget = 4", "budget = 0", "largepages.budget", "leave [largepages] out"),
        ("period = \"2s\"", "period = \"1ms\"", "largepages.period", "200ms"),
        (
            "protect = [\"/mnt/pmem/db/*.pool\"]",
            "protect = \"/mnt/pmem/db/*.pool\"",
            "group[0].protect",
            "protect = [\"...\"]",
        ),
        ("[[peer]]", "[peer]", "peer", "table, expected a list; write it as [[peer]]"),
        ("encrypt = false", "encrypt = \"no\"", "replica[0].encrypt", "true or false"),
        ("dir = \"/srv/replica/web\"", "dir = 5", "replica[0].dir", "expected a path"),
        ("port = 1", "port = 300", "rdma.port", "from 0 to 255"),
        ("commit = \"durable\"", "commit = 3", "group[0].commit", "in quotes"),
        ("commit = \"durable\"", "commit_over = \"most\"", "group[0].commit_over", "any, quorum, all"),
        ("path = \"/run/power/online\"", "", "power.path", "add path = "),
    ] {
        let problems = problems_with(line, instead);
        let p =
            problems.iter().find(|p| p.key == key).unwrap_or_else(|| panic!("{key} not in {problems:#?}"));
        assert!(p.to_string().contains(remedy), "{p}: no `{remedy}`");
        if p.key.starts_with("group[0].") && !instead.contains("[]") {
            assert_eq!(p.line, line_of(line), "{p}");
        }
    }
}

/// [`WHOLE`] with these sources of power and this `[budget]` in place of its own.
fn with_power(power: &str) -> String {
    WHOLE.replacen("source = \"file\"\npath = \"/run/power/online\"\n", power, 1)
}

#[test]
fn power_sources_of_every_kind_are_read() {
    let text = with_power(
        r#"lost_when = "quorum"
quorum = 2
when_unknown = "lost"
confirm = "3s"
settle = "10s"

[[power.sources]]
kind = "nut"
name = "left"
server = "ups.example:3493"
ups = "left"
user = "ha"
password_file = "/etc/pmemha/upsd.password"
login = true

[[power.sources]]
kind = "kernel"
dir = "/sys/class/power_supply"
supplies = ["AC"]

[[power.sources]]
kind = "command"
command = ["/usr/local/bin/power"]
every = "5s"
deadline = "2s"

[[power.sources]]
kind = "file"
path = "/run/power/online"

[budget]
safety = 2
detect = "5s"
hold_up = "60s"
energy_wh = 20.5
power_w = 300
"#,
    );
    let c = parse(&text.replace("trigger = \"saved\"", "trigger = \"saved\"\nbudget = \"enforce\"")).unwrap();
    let power = c.power.unwrap();
    let kinds: Vec<_> = power.all_sources().iter().map(|s| s.kind).collect();
    assert_eq!(kinds, [PowerKind::Nut, PowerKind::Kernel, PowerKind::Command, PowerKind::File]);
    assert_eq!((power.rule().lost_at, power.rule().unknown_is_lost), (2, true));
    assert_eq!((power.confirm, power.settle), (Duration::from_secs(3), Duration::from_secs(10)));
    assert_eq!((c.budget.safety, c.budget.energy_wh, c.budget.power_w), (2.0, Some(20.5), Some(300.0)));
    assert_eq!(c.groups[0].budget, BudgetMode::Enforce);
    // The short form, which acts on the first word of a loss.
    let c = parse(WHOLE).unwrap();
    let power = c.power.unwrap();
    assert_eq!(power.all_sources()[0].path.as_deref(), Some(Path::new("/run/power/online")));
    assert_eq!(
        (power.rule().lost_at, power.confirm, power.settle),
        (1, Duration::ZERO, Duration::from_secs(2))
    );
    assert_eq!((c.groups[0].budget, c.budget), (BudgetMode::Alarm, BudgetKeys::default()));
}

#[test]
fn power_sources_and_budgets_that_cannot_be_are_refused_with_a_remedy() {
    let nut = "[[power.sources]]\nkind = \"nut\"\n";
    for (power, key, remedy) in [
        ("".into(), "power", "[[power.sources]]"),
        ("path = \"/x\"\n".into(), "power.path", "source = \"file\""),
        ("source = \"nut\"\n".into(), "power.source", "[[power.sources]]"),
        (nut.into(), "power.sources[0].ups", "upsc -l"),
        (format!("{nut}ups = \"a\"\nuser = \"u\"\n"), "power.sources[0].user", "both"),
        (format!("{nut}ups = \"a\"\nlogin = true\n"), "power.sources[0].login", "password_file"),
        (format!("{nut}ups = \"a\"\npath = \"/x\"\n"), "power.sources[0].path", "kind = \"file\""),
        (format!("{nut}ups = \"\"\n"), "power.sources[0].ups", "upsc -l"),
        ("[[power.sources]]\nkind = \"command\"\n".into(), "power.sources[0].command", "arguments"),
        (
            "[[power.sources]]\nkind = \"command\"\ncommand = [\"x\"]\n".into(),
            "power.sources[0].command",
            "full path",
        ),
        (
            "[[power.sources]]\nkind = \"command\"\ncommand = [\"/x\"]\nevery = \"2h\"\n".into(),
            "power.sources[0].every",
            "1s",
        ),
        ("[[power.sources]]\nups = \"a\"\n".into(), "power.sources[0].kind", "add kind"),
        (format!("quorum = 1\n{nut}ups = \"a\"\n"), "power.quorum", "lost_when"),
        (format!("lost_when = \"quorum\"\nquorum = 2\n{nut}ups = \"a\"\n"), "power.quorum", "from 1 to 1"),
        (format!("lost_when = \"some\"\n{nut}ups = \"a\"\n"), "power.lost_when", "any, all, quorum"),
        (format!("{nut}ups = \"a\"\n[budget]\nsafety = 0.5\n"), "budget.safety", "1.5"),
        (format!("{nut}ups = \"a\"\n[budget]\nenergy_wh = 5.0\n"), "budget.energy_wh", "both"),
        (format!("{nut}ups = \"a\"\n[budget]\npower_w = -5.0\n"), "budget.power_w", "leave it out"),
    ] {
        let Err(ConfigError::Wrong(problems)) = parse(&with_power(&power)) else {
            panic!("`{power}` was not refused")
        };
        let found = problems.iter().find(|p| p.key == key);
        let found = found.unwrap_or_else(|| panic!("{key} not in {problems:#?}"));
        assert!(found.to_string().contains(remedy), "{found}: no `{remedy}`");
    }
}

#[test]
fn rdma_that_is_to_encrypt_is_refused_and_plain_without_a_word() {
    let verbs = WHOLE.replace("fabric = \"tcp\"", "fabric = \"verbs\"");
    assert!(!parse(&verbs).unwrap().replicas[0].encrypted());
    let silent = parse(&verbs.replace("encrypt = false", "")).unwrap();
    assert!(!silent.replicas[0].encrypted());
    let Err(ConfigError::Wrong(problems)) = parse(&verbs.replace("encrypt = false", "encrypt = true")) else {
        panic!("not refused")
    };
    assert_eq!(problems[0].key, "replica[0].encrypt");
    assert!(problems[0].to_string().contains("does not encrypt"), "{}", problems[0]);
    let tcp = parse(&WHOLE.replace("encrypt = false", "")).unwrap();
    assert!(tcp.replicas[0].encrypted(), "tcp encrypts unless told not to");
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_lines() {
    let text = WHOLE
        .replace("\"beta.example:7475\"", "\"beta\"")
        .replace("\"64MiB\"", "\"1MiB\"")
        .replace("log_size = \"1MiB\"", "log_size = \"3MiB\"");
    let Err(ConfigError::Wrong(p)) = parse(&text) else { panic!() };
    assert_eq!(
        p.iter().map(|p| p.key.as_str()).collect::<Vec<_>>(),
        ["peer[0].address", "group[0].log_size"]
    );
    assert!(p[0].line < p[1].line);
}

/// Every key that is complained of in `text`.
fn keys_of(text: &str) -> Vec<String> {
    let Err(ConfigError::Wrong(problems)) = parse(text) else { panic!("not refused: {text}") };
    problems.into_iter().map(|p| p.key).collect()
}

#[test]
fn a_key_that_cannot_be_read_hides_no_other_fault() {
    let text = WHOLE
        .replace("data_listen = ", "data_lissten = ")
        .replace("device = \"mlx5_0\"", "device = 5")
        .replace("users = [\"postgres\", 1000]", "users = [1.5, \"postgres\", -1]")
        .replace("log_size = \"64MiB\"", "log_size = \"65MiB\"")
        .replace("on_full = \"block\"", "on_full = \"blokc\"")
        .replace("trigger = \"saved\"", "trigger = \"safed\"")
        .replace("destinations = [\"beta\"]", "destinations = [5, \"gamma\"]")
        .replace("dir = \"/srv/replica/web\"", "dir = \"srv\"")
        + "[grup]\nname = \"x\"\n";
    assert_eq!(
        keys_of(&text),
        [
            "node.data_lissten",
            "rdma.device",
            "group[0].users[0]",
            "group[0].users[2]",
            "group[0].log_size",
            "group[0].on_full",
            "group[0].destinations[0]",
            "group[0].destinations[1]",
            "group[0].trigger",
            "replica[0].dir",
            "grup",
        ]
    );
}

#[test]
fn what_could_not_be_read_is_not_called_missing() {
    for (line, instead, key) in [
        ("listen = \"10.0.0.1:7475\"", "lissten = \"10.0.0.1:7475\"", "node.lissten"),
        ("listen = \"10.0.0.1:7475\"", "listen = \"here\"", "node.listen"),
        ("[tls]", "[tsl]", "tsl"),
        ("destinations = [\"beta\"]", "destination = [\"beta\"]", "group[0].destination"),
        ("destinations = [\"beta\"]", "destinations = \"beta\"", "group[0].destinations"),
        ("command = [", "comand = [", "group[0].comand"),
        ("[[peer]]", "[[peeer]]", "peeer"),
        ("name = \"beta\"", "name = 5", "peer[0].name"),
        ("from = [\"beta\"]", "from = [5]", "replica[0].from[0]"),
        ("from = [\"beta\"]", "form = [\"beta\"]", "replica[0].form"),
        ("name = \"alpha\"", "nam = \"alpha\"", "node.nam"),
        ("[node]", "[nod]", "nod"),
        ("ca = \"/etc/pmemha/ca.pem\"", "ca = 1", "tls.ca"),
    ] {
        assert_eq!(keys_of(&WHOLE.replacen(line, instead, 1)), [key], "{instead}");
    }
}

#[test]
fn a_missing_key_is_named_in_its_table_and_hides_nothing() {
    let text = "[[group]]\nname = \"db\"\nusers = 5\n[[group]]\nlog_size = \"1MB\"\n[[peer]]\n";
    assert_eq!(
        keys_of(text),
        ["node", "group[0].users", "group[1].name", "group[1].log_size", "peer[0].name", "peer[0].address"]
    );
    let Err(ConfigError::Wrong(p)) = parse("") else { panic!() };
    assert!(p.len() == 1 && p[0].to_string().contains("add [node] with name"), "{p:?}");
}

#[test]
fn a_text_that_is_no_toml_is_told_of_line_by_line() {
    let text = format!("{WHOLE}\nx = = 1\ny = 2\nz = [\n");
    let Err(ConfigError::Wrong(p)) = parse(&text) else { panic!() };
    let begins = WHOLE.lines().count() + 1;
    assert!(p.iter().any(|p| p.line == begins + 1) && p.iter().any(|p| p.line >= begins + 3), "{p:?}");
}

#[test]
fn what_the_machine_lacks_is_told_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pmemhad.conf");
    std::fs::write(dir.path().join("plain"), "no program").unwrap();
    let text = WHOLE
        .replace("/etc/pmemha", dir.path().to_str().unwrap())
        .replace("\"postgres\"", "\"no-such-user\"")
        .replace("\"/usr/bin/db\"", "\"/nonexistent/db\"")
        .replace("\"/usr/bin/web\"", &format!("\"{}\"", dir.path().join("plain").display()))
        .replace("working_dir = \"/mnt/pmem/db\"", "working_dir = \"/nonexistent\"");
    std::fs::write(&file, &text).unwrap();
    let keys = |refused: Result<Config, ConfigError>| -> Vec<String> {
        let Err(ConfigError::Wrong(problems)) = refused else { panic!("not refused") };
        for p in &problems {
            let key = p.key.rsplit('.').next().unwrap().split('[').next().unwrap();
            assert!(text.lines().nth(p.line - 1).unwrap().contains(key), "{p}");
        }
        problems.into_iter().map(|p| p.key).collect()
    };
    let start = ["tls.ca", "tls.cert", "tls.key", "group[0].users[0]", "group[0].user"];
    assert_eq!(keys(Config::load(&file)), start);
    let more = ["group[0].command", "group[0].working_dir", "replica[0].start"];
    assert!(more.iter().chain(&start).all(|k| keys(Config::check(&file)).contains(&k.to_string())));
    assert!(parse(&text).is_ok(), "another machine may have it all");
}

#[test]
fn names_that_stand_twice_are_refused() {
    let text = format!("{WHOLE}\n[[peer]]\nname = \"beta\"\naddress = \"b:1\"\n");
    let Err(ConfigError::Wrong(p)) = parse(&text) else { panic!() };
    assert_eq!((p[0].key.as_str(), p[0].line), ("peer[1].name", WHOLE.lines().count() + 3));
}

#[test]
fn more_groups_than_a_node_may_have_are_refused_by_the_first_that_is_too_many() {
    let more = |n: usize| -> String {
        (0..n).map(|i| format!("[[group]]\nname = \"g{i}\"\nprotect = [\"/mnt/more/{i}\"]\n")).collect()
    };
    // There are one group and one replica already.
    let within = format!("{WHOLE}\n{}", more(MAX_GROUPS - 2));
    assert!(parse(&within).is_ok(), "{:?}", parse(&within));
    let Err(ConfigError::Wrong(p)) = parse(&format!("{WHOLE}\n{}", more(MAX_GROUPS - 1))) else { panic!() };
    assert!(p.len() == 1 && p[0].key == "replica[0]", "{p:?}");
    assert!(p[0].to_string().contains("128 groups"), "{}", p[0]);
}

#[test]
fn a_missing_file_is_answered_with_what_to_do() {
    let e = Config::load(Path::new("/nonexistent/pmemhad.conf")).unwrap_err().to_string();
    assert!(e.contains("/nonexistent/pmemhad.conf") && e.contains("pmemha init"), "{e}");
}

#[test]
fn bytes_are_written_as_a_person_reads_them() {
    for (n, text) in
        [(0, "0 B"), (999, "999 B"), (1536, "1.50 KiB"), (64 << 20, "64.0 MiB"), (5 << 40, "5.00 TiB")]
    {
        assert_eq!(format_bytes(n), text);
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_damage_to_a_valid_configuration_makes_the_reader_panic_or_lose_the_line(
        at in 0..WHOLE.len(), cut in 0..8usize, insert in "[\\[\\]\"={},a-z0-9\n]{0,6}",
    ) {
        let mut text = WHOLE.to_string();
        text.replace_range(at..(at + cut).min(WHOLE.len()), &insert);
        if let Err(ConfigError::Wrong(problems)) = parse(&text) {
            for p in problems {
                prop_assert!(p.line >= 1 && p.line <= text.lines().count() + 1, "{p}");
            }
        }
    }

    #[test]
    fn sizes_and_durations_round_trip_or_are_refused(n in any::<u64>()) {
        prop_assert_eq!(parse_bytes(&format!("{n}B")).unwrap(), n);
        prop_assert_eq!(parse_bytes(&exact_bytes(n)).unwrap(), n);
        prop_assert_eq!(parse_duration(&format!("{n}ns")).unwrap(), Duration::from_nanos(n));
        prop_assert_eq!(parse_bytes(&format!("{n} MiB")).ok(), n.checked_mul(1 << 20));
    }
}

#[test]
fn the_heir_is_named_early_only_where_there_is_but_one_and_destinations_are_not_without_number() {
    let peer = |i| format!("[[peer]]\nname = \"n{i}\"\naddress = \"n{i}.example:7475\"\n\n");
    let peers = (0..16).map(peer).collect::<String>() + "[[peer]]\n";
    let names: Vec<String> = (0..16).map(|i| format!("\"n{i}\"")).collect();
    let with = |destinations: &str, trigger: &str| {
        let text = WHOLE
            .replacen("[[peer]]\n", &peers, 1)
            .replace("destinations = [\"beta\"]", &format!("destinations = [\"beta\"{destinations}]"))
            .replace("trigger = \"saved\"", &format!("trigger = \"{trigger}\""));
        match parse(&text) {
            Ok(_) => Vec::new(),
            Err(ConfigError::Wrong(problems)) => problems.into_iter().map(|p| p.key).collect(),
            Err(other) => panic!("{other}"),
        }
    };
    assert!(with("", "save-started").is_empty() && with(", \"n0\"", "saved").is_empty());
    assert_eq!(with(", \"n0\"", "save-started"), ["group[0].trigger"]);
    let all = names.join(", ");
    assert!(with(&format!(", {}", names[1..].join(", ")), "saved").is_empty());
    assert_eq!(with(&format!(", {all}"), "saved"), ["group[0].destinations"]);
}
