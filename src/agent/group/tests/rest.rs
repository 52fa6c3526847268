//! What was done to files while nobody had them open.

use super::*;

#[test]
fn a_file_that_was_changed_while_nobody_had_it_open_is_copied_anew() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    drop(bench.file("a.pool", 4096));
    let open = || File::options().read(true).write(true).open(bench.path("a.pool")).unwrap();
    let run = |group: &Group| {
        let id = group.enters(process(10));
        group.protect(open().as_fd(), 0, false).unwrap();
        id
    };
    let at_rest = |group: &Group, id| {
        group.detached(id);
        group.come_to_rest();
    };
    let first = run(&group);
    at_rest(&group, first);
    drop(group);
    let (group, _notices) = bench.open(1);
    let second = run(&group);
    assert!(!group.log().is_ahead(), "it is as it was left");
    open().set_modified(std::time::UNIX_EPOCH).unwrap();
    group.protect(open().as_fd(), 0, false).unwrap();
    assert!(!group.log().is_ahead(), "the program has it open, and does that itself");
    at_rest(&group, second);
    open().set_len(0).unwrap();
    let third = run(&group);
    assert!(!group.log().is_ahead(), "a record says all of an empty file");
    assert_eq!(records(&group).last(), Some(&(Kind::RegionResize, RegionId(1))));
    at_rest(&group, third);
    rustix::io::pwrite(open(), b"x", 5000).unwrap();
    run(&group);
    assert!(group.log().is_ahead());
}

#[test]
fn what_was_done_to_a_file_at_rest_is_not_forgotten_by_a_run_that_opens_others() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    for name in ["a.pool", "b.pool"] {
        drop(bench.file(name, 4096));
    }
    let open = |name: &str| File::options().read(true).write(true).open(bench.path(name)).unwrap();
    let run = |names: &[&str]| {
        let id = group.enters(process(10));
        names.iter().for_each(|name| _ = group.protect(open(name).as_fd(), 0, false).unwrap());
        group.detached(id);
        group.come_to_rest();
    };
    run(&["a.pool", "b.pool"]);
    rustix::io::pwrite(open("b.pool"), b"x", 0).unwrap();
    run(&["a.pool"]);
    assert!(!group.log().is_ahead(), "a is as it was left");
    run(&["b.pool"]);
    assert!(group.log().is_ahead());
}

#[test]
fn pages_and_size_of_a_file_are_recorded_late_only_at_rest() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    let file = bench.file("a.pool", 12288);
    let id = group.enters(process(10));
    let (region, _) = group.protect(file.as_fd(), 0, false).unwrap();
    file.set_len(8192).unwrap();
    rustix::io::pwrite(&file, b"x", 5000).unwrap();
    assert!(group.record_pages(region.id(), &[1]) == 0 && !group.record_rest_size(region.id()), "it is open");
    group.detached(id);
    group.come_to_rest();
    let left = region.at_rest().unwrap();
    assert!(!group.rests_as(region.id(), left), "its size is in no record");
    assert_eq!(group.record_pages(region.id(), &[1]), 1);
    let kinds = [Kind::RegionCreate, Kind::RegionResize, Kind::Data];
    assert_eq!(records(&group), kinds.map(|kind| (kind, RegionId(1))));
    assert!(!group.record_rest_size(region.id()) && group.rests_as(region.id(), left));
    // The heir is told where the log ends: nothing may come behind that.
    group.hold_still();
    assert_eq!(group.record_pages(region.id(), &[1]), 0);
    group.go_on();
    assert_eq!(group.record_pages(region.id(), &[1]), 1, "it was called off");
}

#[test]
fn a_copy_in_a_last_gasp_takes_a_file_at_rest_as_it_is_and_its_size_is_still_to_be_recorded() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    let file = bench.file("a.pool", 4096);
    let id = group.enters(process(10));
    let (region, _) = group.protect(file.as_fd(), 0, false).unwrap();
    group.detached(id);
    group.come_to_rest();
    group.hold_still();
    file.set_len(8192).unwrap();
    let recorded = || {
        group.appender().drain();
        records(&group)
    };
    let before = recorded();
    assert_eq!(group.follow_files(|_, len| len).unwrap(), [8192]);
    assert_eq!(recorded(), before, "behind the end that the heir is told");
    group.go_on();
    assert_eq!(group.follow_files(|_, len| len).unwrap(), [8192]);
    assert_eq!(recorded().last(), Some(&(Kind::RegionResize, region.id())));
}

#[test]
fn files_are_followed_to_names_and_sizes_that_no_record_told_of() {
    let bench = Bench::new();
    let (group, _notices) = bench.open(1);
    let named =
        |group: &Group| -> Vec<_> { group.regions().iter().map(|r| (r.id().0, r.path(), r.len())).collect() };
    for name in ["a.pool", "b.pool"] {
        group.protect(bench.file(name, 4096).as_fd(), 0, false).unwrap();
    }
    let (a, b, c) = (bench.path("a.pool"), bench.path("b.pool"), bench.path("c.pool"));
    std::fs::rename(&a, &c).unwrap();
    // Another file takes the old name while the first one's renaming is not known yet.
    group.protect(bench.file("a.pool", 4096).as_fd(), 0, false).unwrap();
    assert_eq!(named(&group), [(1, c.clone(), 4096), (2, b.clone(), 4096), (3, a.clone(), 4096)]);
    // The record of it comes late, after one more renaming.
    std::fs::rename(&c, bench.path("d.pool")).unwrap();
    std::fs::rename(&a, &c).unwrap();
    group.region_renamed(RegionId(3), c.to_str().unwrap()).unwrap();
    assert_eq!(named(&group).len(), 3, "the first file is still there");
    drop(bench.file("b.pool", 12288));
    std::fs::remove_file(&c).unwrap();
    group.follow_files(|_, _| ()).unwrap();
    let expected = [(1, bench.path("d.pool"), 4096), (2, b.clone(), 12288)];
    assert_eq!(named(&group), expected);
    drop(group);
    let (group, _notices) = bench.open(1);
    assert_eq!(named(&group), expected, "and kept across agents");
}
