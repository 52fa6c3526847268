//! Files that match and that no program has opened.

use super::*;

#[test]
fn existing_files_that_match_are_protected_whether_or_not_anyone_opens_them() {
    let bench = Bench::new();
    std::fs::write(bench.path("small.pool"), "content").unwrap();
    std::fs::write(bench.path("large.pool"), vec![1; 32 << 10]).unwrap();
    std::fs::write(bench.path("other"), "content").unwrap();
    symlink(bench.path("other"), bench.path("link.pool")).unwrap();
    let (group, notices) = bench.open(1);
    group.look_for_files();
    let paths = |group: &Group| -> Vec<_> { group.regions().iter().map(|r| r.path()).collect() };
    let mut found = paths(&group);
    found.sort();
    assert_eq!(found, [bench.path("large.pool"), bench.path("small.pool")]);
    assert!(group.log().owes(Debt::Copy), "of the large one");
    let whole = |notice| matches!(notice, Notice::RegionAdded { whole: true, .. });
    assert_eq!(notices.try_iter().filter(|notice| whole(notice.clone())).count(), 1, "the small one");
    group.look_for_files();
    assert_eq!(group.regions().len(), 2);
    assert_eq!(group.unprotected_files(), (vec![], 0));

    // Whoever opens them finds them as they were found, or else they are copied.
    let open = |name| File::options().read(true).write(true).open(bench.path(name)).unwrap();
    group.enters(process(10));
    let (small, _) = group.protect(open("small.pool").as_fd(), 0, false).unwrap();
    assert!(small.at_rest().is_none() && !group.log().is_ahead());
    rustix::io::pwrite(open("large.pool"), b"x", 5000).unwrap();
    group.protect(open("large.pool").as_fd(), 0, false).unwrap();
    assert!(group.log().is_ahead());
}

#[test]
fn a_file_that_comes_later_is_protected_once_nobody_writes_to_it_any_more() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    group.look_for_files();
    let file = bench.file("a.pool", 4096);
    group.look_for_files();
    rustix::io::pwrite(&file, &[1; 8192], 0).unwrap();
    group.look_for_files();
    assert!(group.regions().is_empty(), "it is still growing");
    assert!(group.unprotected_files().0[0].why.contains("somebody writes to it"));
    group.hold_still();
    group.look_for_files();
    assert!(group.regions().is_empty(), "nothing may come behind the end that the heir is told");
    group.go_on();
    group.look_for_files();
    assert_eq!(group.regions()[0].len(), 8192);
    // One that takes its place is another one.
    std::fs::rename(bench.path("a.pool"), bench.path("moved")).unwrap();
    std::fs::write(bench.path("b.new"), "other").unwrap();
    std::fs::rename(bench.path("b.new"), bench.path("a.pool")).unwrap();
    std::fs::remove_file(bench.path("moved")).unwrap();
    group.look_for_files();
    group.look_for_files();
    let regions: Vec<_> = group.regions().iter().map(|r| (r.path(), r.len())).collect();
    assert_eq!(regions, [(bench.path("a.pool"), 5)]);
}

#[test]
fn a_file_that_could_not_be_entered_is_named_until_it_is() {
    let bench = Bench::new();
    let (group, notices) = bench.open(1);
    drop(bench.file("a.pool", 4096));
    let beside = bench.dir.path().join("state/groups/db/group.new");
    std::fs::create_dir(&beside).unwrap();
    for _ in 0..3 {
        group.look_for_files();
        assert_eq!(group.unprotected_files().0.len(), 1);
    }
    let told: Vec<_> = notices.try_iter().collect();
    assert!(matches!(&told[..], [Notice::NotProtected { .. }]), "once: {told:?}");
    std::fs::remove_dir(&beside).unwrap();
    group.look_for_files();
    assert!(group.unprotected_files().0.is_empty() && group.regions().len() == 1);
}

#[test]
fn what_the_applications_users_may_not_read_or_write_is_named_and_not_protected() {
    let mut bench = Bench::new();
    let text = "[node]\nname='a'\n[[group]]\nname='db'\nusers=[4711]\n";
    bench.access = Arc::new(Access::new(&Config::parse(text, Path::new("t")).unwrap(), 0).unwrap());
    let mode = |path: &Path, bits| {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(bits);
        std::fs::set_permissions(path, permissions).unwrap();
    };
    mode(bench.dir.path(), 0o755);
    for (name, bits) in [("both.pool", 0o666), ("secret.pool", 0o600), ("fixed.pool", 0o644)] {
        drop(bench.file(name, 4096));
        mode(&bench.path(name), bits);
    }
    drop(bench.file("own.pool", 4096));
    mode(&bench.path("own.pool"), 0o400);
    std::os::unix::fs::chown(bench.path("own.pool"), Some(4711), None).unwrap();
    let (group, notices) = bench.open(1);
    group.look_for_files();
    let paths: std::collections::BTreeSet<_> = group.regions().iter().map(|r| r.path()).collect();
    assert_eq!(paths, ["both.pool", "own.pool"].map(|name| bench.path(name)).into());
    let refused = |group: &Group| -> Vec<String> {
        group.unprotected_files().0.iter().map(|file| format!("{}: {}", file.path, file.why)).collect()
    };
    let expected = [
        format!("{}: no user of the group's (4711) may write it", bench.path("fixed.pool").display()),
        format!(
            "{}: user 4711 may not read it, and the log would show its content",
            bench.path("secret.pool").display()
        ),
    ];
    assert_eq!(refused(&group), expected);
    let told = notices.try_iter().filter(|notice| matches!(notice, Notice::NotProtected { .. })).count();
    assert_eq!(told, 2);
    // Nor does it get there if it could not reach it.
    mode(&bench.path(""), 0o700);
    drop(bench.file("third.pool", 4096));
    mode(&bench.path("third.pool"), 0o666);
    group.look_for_files();
    assert!(refused(&group).iter().any(|why| why.contains("third.pool: user 4711 does not reach it")));
    let told: Vec<_> = notices.try_iter().collect();
    assert_eq!(told.len(), 1, "{told:?}");
}

#[test]
fn a_new_log_has_every_file_of_the_group_whether_or_not_anyone_opens_it() {
    let mut bench = Bench::new();
    let (group, _notices) = bench.open(1);
    group.protect(bench.file("a.pool", 12288).as_fd(), 4096, false).unwrap();
    group.protect(bench.file("b.pool", 8192).as_fd(), 0, false).unwrap();
    let named = |group: &Group| -> Vec<_> { group.regions().iter().map(|r| (r.path(), r.len())).collect() };
    let all = named(&group);
    drop(group);
    bench.keeper.0.lock().unwrap().clear();
    let (group, _notices) = bench.open(2);
    assert_eq!((group.generation(), named(&group)), (Generation(2), all), "the log was lost");
    assert_eq!(records(&group).len(), 2);
    drop(group);
    // Another node owned the group in generation 3, and left it without b.
    drop(bench.file("c.pool", 4096));
    let gone = PlacedFile { path: bench.path("gone.pool"), ..bench.placed("c.pool") };
    bench.placed = vec![bench.placed("a.pool"), bench.placed("c.pool"), gone];
    let (group, _notices) = bench.open(4);
    assert_eq!(named(&group), [(bench.path("a.pool"), 12288), (bench.path("c.pool"), 4096)]);
}
