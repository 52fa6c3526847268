//! What we hand to libibverbs lies in memory as C sees it, and no program of ours needs libibverbs to start.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::mem::{offset_of, size_of};
use std::process::Command;

use rdma_sys::*;

/// Sizes and offsets as Rust has them, by the expressions that give them in C.
fn in_rust() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    macro_rules! layouts {
        ($($of:ident { $($($rust:ident).+ => $c:literal),* $(,)? })*) => {$(
            found.insert(format!("sizeof(struct {})", stringify!($of)), size_of::<$of>());
            $(found.insert(
                format!("offsetof(struct {}, {})", stringify!($of), $c),
                offset_of!($of, $($rust).+),
            );)*
        )*};
    }
    layouts! {
        ibv_device_attr {
            max_qp_wr => "max_qp_wr", max_sge => "max_sge", max_cqe => "max_cqe",
            max_qp_rd_atom => "max_qp_rd_atom", max_qp_init_rd_atom => "max_qp_init_rd_atom",
        }
        ibv_port_attr {
            state => "state", active_mtu => "active_mtu", max_msg_sz => "max_msg_sz", lid => "lid",
            link_layer => "link_layer", flags => "flags",
        }
        ibv_context { ops => "ops", async_fd => "async_fd", abi_compat => "abi_compat" }
        ibv_context_ops {
            poll_cq => "poll_cq", req_notify_cq => "req_notify_cq", post_send => "post_send",
            post_recv => "post_recv",
        }
        ibv_comp_channel { fd => "fd" }
        ibv_cq { context => "context" }
        ibv_qp { context => "context", qp_num => "qp_num" }
        ibv_mr { lkey => "lkey", rkey => "rkey" }
        ibv_async_event { element => "element", event_type => "event_type" }
        ibv_qp_init_attr {
            send_cq => "send_cq", recv_cq => "recv_cq", cap => "cap", qp_type => "qp_type",
            sq_sig_all => "sq_sig_all",
        }
        ibv_qp_cap {
            max_send_wr => "max_send_wr", max_recv_wr => "max_recv_wr", max_send_sge => "max_send_sge",
            max_recv_sge => "max_recv_sge", max_inline_data => "max_inline_data",
        }
        ibv_qp_attr {
            qp_state => "qp_state", path_mtu => "path_mtu", rq_psn => "rq_psn", sq_psn => "sq_psn",
            dest_qp_num => "dest_qp_num", qp_access_flags => "qp_access_flags", ah_attr => "ah_attr",
            pkey_index => "pkey_index", max_rd_atomic => "max_rd_atomic",
            max_dest_rd_atomic => "max_dest_rd_atomic", min_rnr_timer => "min_rnr_timer",
            port_num => "port_num", timeout => "timeout", retry_cnt => "retry_cnt", rnr_retry => "rnr_retry",
        }
        ibv_ah_attr { grh => "grh", dlid => "dlid", is_global => "is_global", port_num => "port_num" }
        ibv_global_route {
            dgid => "dgid", flow_label => "flow_label", sgid_index => "sgid_index",
            hop_limit => "hop_limit", traffic_class => "traffic_class",
        }
        ibv_sge { addr => "addr", length => "length", lkey => "lkey" }
        ibv_recv_wr { wr_id => "wr_id", next => "next", sg_list => "sg_list", num_sge => "num_sge" }
        ibv_send_wr {
            wr_id => "wr_id", next => "next", sg_list => "sg_list", num_sge => "num_sge",
            opcode => "opcode", send_flags => "send_flags",
            imm_data_invalidated_rkey_union.imm_data => "imm_data",
            wr.rdma.remote_addr => "wr.rdma.remote_addr", wr.rdma.rkey => "wr.rdma.rkey",
        }
        ibv_wc {
            wr_id => "wr_id", status => "status", opcode => "opcode",
            imm_data_invalidated_rkey_union.imm_data => "imm_data", wc_flags => "wc_flags",
        }
    }
    // Constants that the headers keep in nameless enumerations, and we by hand.
    found.insert("IBV_LINK_LAYER_ETHERNET".to_owned(), 2);
    found.insert("IBV_QPF_GRH_REQUIRED".to_owned(), 1);
    found.insert("IBV_FORK_DISABLED".to_owned(), 0);
    found
}

#[test]
fn structures_lie_in_memory_as_the_c_compiler_lays_them_out() {
    let ours = in_rust();
    let mut source = String::from(
        "#include <infiniband/verbs.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n",
    );
    for expression in ours.keys() {
        writeln!(source, "    printf(\"%zu %s\\n\", (size_t)({expression}), \"{expression}\");").unwrap();
    }
    source.push_str("    return 0;\n}\n");
    let dir = tempfile::tempdir().unwrap();
    let (file, program) = (dir.path().join("layout.c"), dir.path().join("layout"));
    std::fs::write(&file, source).unwrap();
    let compiled = Command::new("cc").args(["-Wall", "-Werror", "-o"]).args([&program, &file]).output();
    let compiled = compiled.expect("a C compiler is installed: scripts/setup");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let said = Command::new(&program).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let theirs: BTreeMap<String, usize> = said
        .lines()
        .map(|line| line.split_once(' ').expect("number and expression"))
        .map(|(number, expression)| (expression.to_owned(), number.parse().unwrap()))
        .collect();
    assert_eq!(theirs, ours);
}

#[test]
fn programs_start_without_libibverbs() {
    for program in [env!("CARGO_BIN_EXE_pmemhad"), env!("CARGO_BIN_EXE_pmemha")] {
        let out =
            Command::new("readelf").args(["-d", "-W", program]).output().expect("binutils are installed");
        let dynamic = String::from_utf8(out.stdout).unwrap();
        let needed: Vec<&str> = dynamic.lines().filter(|line| line.contains("(NEEDED)")).collect();
        assert!(needed.iter().any(|line| line.contains("libc.so.6")), "{program}: {dynamic}");
        let strange = needed.iter().find(|line| line.contains("verbs") || line.contains("rdmacm"));
        assert_eq!(strange, None, "{program} is linked against it");
    }
}
