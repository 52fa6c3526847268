//! A status to try renderings on: a node with one healthy group.

use super::*;

pub fn status() -> Status {
    let row = DestinationStatus {
        node: "beta".into(),
        role: Role::Source,
        generation: Generation(3),
        state: DestinationState::Streaming,
        lsn_published: Lsn(10_000),
        lsn_received: Lsn(10_000),
        lsn_durable: Lsn(8_976),
        lsn_applied: Lsn(5_904),
        exposure_bytes: 1024,
        drain_bytes_per_s: Some(120 << 20),
        fabric: Some("tcp".into()),
        durability: Some("disk".into()),
        encrypted: Some(true),
        memory: Some(MemoryKind::File),
        staged: Some(false),
        resumed: None,
        unprotected_writes: 0,
        unprotected_writes_recorded: 0,
        sync: None,
        lsn_verified: None,
        verify: None,
        last_error: None,
        as_of: "2026-01-01T00:00:00.000000Z".into(),
    };
    let group = GroupStatus {
        name: "db".into(),
        role: Role::Source,
        generation: Generation(3),
        state: "running".into(),
        supervision: Some("cgroup2".into()),
        error: None,
        sessions: vec![],
        regions: vec![RegionStatus {
            region: RegionId(1),
            path: "/mnt/a".into(),
            len: 8 << 20,
            memory: Some(MemoryKind::Fsdax),
            mapped: true,
        }],
        budget: None,
        regions_more: 0,
        regions_more_bytes: 0,
        unprotected_files: vec![],
        unprotected_files_more: 0,
        log: None,
        destinations: vec![row],
        archive: None,
    };
    Status {
        as_of: "2026-01-01T00:00:00.000000Z".into(),
        node: NodeStatus {
            name: "alpha".into(),
            version: "0.1.0".into(),
            pid: 1,
            uptime_s: 3725,
            listen: None,
            sessions: 0,
            rdma: RdmaStatus::default(),
        },
        power: None,
        placement: None,
        groups: vec![group],
    }
}
