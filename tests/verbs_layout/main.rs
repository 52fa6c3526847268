//! What we hand to libibverbs lies in memory as C sees it and means what C means, and no program or library of ours
//! needs libibverbs to start.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use pmemha_testkit::dirs::repo;
use pmemha_testkit::install::library;
use pmemha_testkit::programs::preload;
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
    found
}

/// Enumerators and flags as `rdma-sys` has them, and those that our own file has by hand.
fn constants() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    macro_rules! constants {
        ($($of:ident { $($name:ident),* $(,)? })*) => {$($(
            found.insert(stringify!($name).to_owned(), $of::$name as usize);
        )*)*};
    }
    macro_rules! flags {
        ($($of:ident { $($name:ident),* $(,)? })*) => {$($(
            found.insert(stringify!($name).to_owned(), $of::$name.0 as usize);
        )*)*};
    }
    constants! {
        ibv_event_type {
            IBV_EVENT_CQ_ERR, IBV_EVENT_QP_FATAL, IBV_EVENT_QP_REQ_ERR, IBV_EVENT_QP_ACCESS_ERR,
            IBV_EVENT_DEVICE_FATAL, IBV_EVENT_PORT_ERR, IBV_EVENT_GID_CHANGE,
        }
        ibv_mtu { IBV_MTU_256, IBV_MTU_512, IBV_MTU_1024, IBV_MTU_2048, IBV_MTU_4096 }
        ibv_qp_state { IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QPS_ERR }
        ibv_qp_type { IBV_QPT_RC }
        ibv_wc_opcode { IBV_WC_RECV_RDMA_WITH_IMM }
        ibv_wc_status {
            IBV_WC_SUCCESS, IBV_WC_WR_FLUSH_ERR, IBV_WC_REM_INV_REQ_ERR, IBV_WC_REM_ACCESS_ERR,
            IBV_WC_REM_OP_ERR, IBV_WC_RETRY_EXC_ERR, IBV_WC_RNR_RETRY_EXC_ERR, IBV_WC_REM_ABORT_ERR,
            IBV_WC_RESP_TIMEOUT_ERR,
        }
        ibv_wr_opcode { IBV_WR_RDMA_WRITE, IBV_WR_RDMA_WRITE_WITH_IMM, IBV_WR_RDMA_READ }
    }
    flags! {
        ibv_access_flags {
            IBV_ACCESS_LOCAL_WRITE, IBV_ACCESS_REMOTE_WRITE, IBV_ACCESS_REMOTE_READ, IBV_ACCESS_RELAXED_ORDERING,
        }
        ibv_qp_attr_mask {
            IBV_QP_STATE, IBV_QP_ACCESS_FLAGS, IBV_QP_PKEY_INDEX, IBV_QP_PORT, IBV_QP_AV, IBV_QP_PATH_MTU,
            IBV_QP_TIMEOUT, IBV_QP_RETRY_CNT, IBV_QP_RNR_RETRY, IBV_QP_RQ_PSN, IBV_QP_MAX_QP_RD_ATOMIC,
            IBV_QP_MIN_RNR_TIMER, IBV_QP_SQ_PSN, IBV_QP_MAX_DEST_RD_ATOMIC, IBV_QP_DEST_QPN,
        }
        ibv_send_flags { IBV_SEND_SIGNALED, IBV_SEND_INLINE }
    }
    let by_hand = fabric().join("ffi.rs");
    let by_hand = std::fs::read_to_string(by_hand).unwrap();
    for line in by_hand.lines().map(|line| line.strip_prefix("pub ").unwrap_or(line)) {
        let Some(line) = line.strip_prefix("const ").filter(|line| line.starts_with("IBV_")) else {
            continue;
        };
        let (name, value) = line.split_once(':').expect("a constant has a type");
        let value = value.split_once("= ").expect("and a value").1.trim_end_matches(';');
        found.insert(name.to_owned(), value.parse().expect("which is a number"));
    }
    found
}

/// The room that speaks verbs.
fn fabric() -> PathBuf {
    repo().join("src/fabric/verbs")
}

#[test]
fn structures_lie_in_memory_as_the_c_compiler_lays_them_out() {
    let ours = in_rust();
    assert_eq!(in_c(&ours), ours);
}

#[test]
fn constants_have_the_values_that_the_c_headers_give_them() {
    let ours = constants();
    assert_eq!(in_c(&ours), ours);
}

#[test]
fn every_constant_that_the_fabric_names_is_compared() {
    let compared = constants();
    for file in std::fs::read_dir(fabric()).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for name in words.filter(|word| word.starts_with("IBV_")) {
            assert!(
                compared.contains_key(name),
                "{}: {name} is not in the list of this test",
                path.display()
            );
        }
    }
}

/// What the C compiler makes of the expressions.
fn in_c(ours: &BTreeMap<String, usize>) -> BTreeMap<String, usize> {
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
    said.lines()
        .map(|line| line.split_once(' ').expect("number and expression"))
        .map(|(number, expression)| (expression.to_owned(), number.parse().unwrap()))
        .collect()
}

#[test]
fn programs_start_without_libibverbs() {
    for program in [env!("CARGO_BIN_EXE_pmemhad"), env!("CARGO_BIN_EXE_pmemha")] {
        let needed = needed(Path::new(program));
        assert!(needed.contains("libc.so.6"), "{program}: {needed:?}");
        let strange = needed.iter().find(|library| library.contains("verbs") || library.contains("rdmacm"));
        assert_eq!(strange, None, "{program} is linked against it");
    }
}

#[test]
fn libraries_need_the_c_library_the_unwinder_and_nothing_else() {
    // The loader is named for its thread-local storage.
    let expected = ["ld-linux-x86-64.so.2", "libc.so.6", "libgcc_s.so.1"].map(str::to_owned);
    for library in [library(), preload()] {
        assert_eq!(needed(library), BTreeSet::from(expected.clone()), "{}", library.display());
    }
}

/// The libraries that the loader loads with a file.
fn needed(file: &Path) -> BTreeSet<String> {
    let out = Command::new("readelf").args(["-d", "-W"]).arg(file).output().expect("binutils are installed");
    let dynamic = String::from_utf8(out.stdout).unwrap();
    let lines = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    let name = |line: &str| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned());
    lines.filter_map(name).collect()
}
