//! What a configuration names and this machine must have: files, users, programs.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::check::Faults;
use super::model::{Tls, UserRef};
use super::{Config, Fault};
use crate::agent::users;
use crate::fabric::tls::{TlsError, TlsIdentity};

/// What an agent cannot start without.
pub(super) fn needed(config: &Config) -> Vec<Fault> {
    let mut found = Faults::default();
    if let Some(tls) = &config.tls {
        check_tls(tls, &mut found);
    }
    check_users(config, &mut found);
    found.into_inner()
}

/// Also what an agent would start without, to fail when it is wanted. It may be there by then, so only who asks is told.
pub(super) fn wanted(config: &Config) -> Vec<Fault> {
    let mut found = Faults::default();
    check_certificate(config, &mut found);
    for (i, source) in config.power.iter().flat_map(|power| &power.sources).enumerate() {
        let command = source.command.as_deref().unwrap_or_default();
        check_program(&["power", "sources", &i.to_string(), "command"], command, &mut found);
    }
    for (i, group) in config.groups.iter().enumerate() {
        let i = i.to_string();
        check_program(&["group", &i, "command"], &group.command, &mut found);
        check_directory(&["group", &i, "working_dir"], group.working_dir.as_deref(), &mut found);
    }
    for (i, replica) in config.replicas.iter().enumerate() {
        let i = i.to_string();
        check_program(&["replica", &i, "start"], &replica.start, &mut found);
        check_directory(&["replica", &i, "working_dir"], replica.working_dir.as_deref(), &mut found);
    }
    needed(config).into_iter().chain(found.into_inner()).collect()
}

fn check_tls(tls: &Tls, found: &mut Faults) {
    let files = [("ca", &tls.ca), ("cert", &tls.cert), ("key", &tls.key)];
    let mut all = true;
    for (key, file) in files.iter().filter(|(_, file)| file.is_absolute()) {
        if let Err(error) = fs::File::open(file).and_then(|mut f| std::io::copy(&mut f, &mut std::io::sink()))
        {
            all = false;
            let remedy = match error.kind() {
                ErrorKind::PermissionDenied => {
                    "give it to the user that this program runs as, and let nobody else read it"
                }
                _ => "`pmemha init` makes the files; copy them here",
            };
            found.add(&["tls", key], format!("`{}` cannot be read: {error}", file.display()), remedy);
        }
    }
    if !all || files.iter().any(|(_, file)| !file.is_absolute()) {
        return;
    }
    if let Err(error) = TlsIdentity::load(&tls.ca, &tls.cert, &tls.key) {
        let culprit = match &error {
            TlsError::File { path, .. }
            | TlsError::Content { path, .. }
            | TlsError::KeyExposed { path, .. } => files.iter().find(|(_, file)| *file == path),
            _ => None,
        };
        let key = culprit.map(|(key, _)| *key);
        found.add(&["tls"].into_iter().chain(key).collect::<Vec<_>>(), error.to_string(), "");
    }
}

/// Others know this node by its certificate.
fn check_certificate(config: &Config, found: &mut Faults) {
    let Some(tls) = &config.tls else { return };
    let Ok(identity) = TlsIdentity::load(&tls.ca, &tls.cert, &tls.key) else { return };
    let (name, certified) = (&config.node.name, identity.node());
    if !name.eq_ignore_ascii_case(certified) {
        found.add(
            &["node", "name"],
            format!("`{name}` is not whom the certificate in {} names: `{certified}`", tls.cert.display()),
            "name the node as its certificate does, or copy this node's certificate and key here",
        );
    }
}

fn check_users(config: &Config, found: &mut Faults) {
    for (i, group) in config.groups.iter().enumerate() {
        let i = i.to_string();
        for (n, user) in group.users.iter().enumerate() {
            check_user(&["group", &i, "users", &n.to_string()], user, found);
        }
        if let Some(user) = &group.user {
            check_user(&["group", &i, "user"], user, found);
        }
    }
    for (i, replica) in config.replicas.iter().enumerate() {
        if let Some(user) = &replica.user {
            check_user(&["replica", &i.to_string(), "user"], user, found);
        }
    }
}

fn check_user(at: &[&str], user: &UserRef, found: &mut Faults) {
    if let Err(error) = users::resolve(user) {
        found.add(at, error, "");
    }
}

fn check_program(at: &[&str], command: &[String], found: &mut Faults) {
    let Some(program) = command.first().map(Path::new).filter(|program| program.is_absolute()) else {
        return;
    };
    let shown = program.display();
    let what = match fs::metadata(program) {
        Err(error) => format!("`{shown}` cannot be started: {error}"),
        Ok(meta) if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 => {
            format!("`{shown}` is no executable file")
        }
        Ok(_) => return,
    };
    found.add(at, what, "install the program, or name another");
}

fn check_directory(at: &[&str], dir: Option<&Path>, found: &mut Faults) {
    let Some(dir) = dir.filter(|dir| dir.is_absolute() && !dir.is_dir()) else { return };
    found.add(at, format!("there is no directory `{}`", dir.display()), "make it, or name another");
}
