//! `pmemha init`: an authority, a certificate and a commented configuration for each node.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use clap::Args;

use pmemha::agent::config::Config;
use pmemha::fabric::tls::{make_authority, make_node_certificate};

use crate::failure::{CANT_CREATE, Failure, SOFTWARE, USAGE};
use crate::output::print;

/// `pmemha init`
#[derive(Args)]
pub struct Init {
    /// Directory to make; a subdirectory for each node goes to that node as /etc/pmemha
    #[arg(default_value = "pmemha-init")]
    dir: PathBuf,
    /// A node as NAME=HOST:PORT; once for each
    #[arg(long = "node", value_name = "NAME=HOST:PORT", default_values = ["alpha=127.0.0.1:7475", "beta=127.0.0.1:7476"])]
    nodes: Vec<String>,
    /// Where the nodes will have their configuration
    #[arg(long, value_name = "DIR", default_value = "/etc/pmemha")]
    install: PathBuf,
}

/// Most nodes at a time: a source and as many destinations as a group may have.
const MAX_NODES: usize = 17;

/// File name of a node's configuration.
const CONFIGURATION: &str = "pmemhad.conf";

struct Node {
    name: String,
    address: String,
}

impl Init {
    pub fn execute(self) -> Result<(), Failure> {
        let nodes = self.nodes.iter().map(|n| parse_node(n)).collect::<Result<Vec<_>, _>>()?;
        if nodes.len() > MAX_NODES {
            return Err(Failure::new(
                USAGE,
                format!("at most {MAX_NODES} nodes: a source and its destinations"),
            ));
        }
        let named_before =
            |(i, node): &(usize, &Node)| nodes[..*i].iter().any(|before| before.name == node.name);
        if let Some((_, node)) = nodes.iter().enumerate().find(named_before) {
            return Err(Failure::new(USAGE, format!("--node: two are called {}", node.name)));
        }
        // Before anything is made: what is wrong with a name or an address, the configuration's own check says.
        let configurations = nodes
            .iter()
            .map(|node| {
                let others: Vec<&Node> = nodes.iter().filter(|other| other.name != node.name).collect();
                let text = configuration(&self.install, node, &others);
                let checked = Config::parse(&text, Path::new(CONFIGURATION));
                checked.map(|_| text).map_err(|e| Failure::new(USAGE, e))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let create = |what: &Path| {
            let what = what.display().to_string();
            move |e: std::io::Error| {
                Failure::new(CANT_CREATE, format!("{what}: {e}; name a directory that does not exist yet"))
            }
        };
        fs::DirBuilder::new().mode(0o700).create(&self.dir).map_err(create(&self.dir))?;
        let tls = |e| Failure::new(SOFTWARE, format!("{e}"));
        let authority = make_authority().map_err(tls)?;
        let ca = self.dir.join("ca.pem");
        authority.write(&ca, &self.dir.join("ca.key")).map_err(tls)?;
        for (node, text) in nodes.iter().zip(configurations) {
            let dir = self.dir.join(&node.name);
            fs::create_dir(&dir).map_err(create(&dir))?;
            fs::copy(&ca, dir.join("ca.pem")).map_err(create(&dir))?;
            let certificate = make_node_certificate(&authority, &node.name).map_err(tls)?;
            certificate.write(&dir.join("node.pem"), &dir.join("node.key")).map_err(tls)?;
            let file = dir.join(CONFIGURATION);
            fs::write(&file, text).map_err(create(&file))?;
            print(&format!(
                "{}: copy it to {} of node {}\n",
                dir.display(),
                self.install.display(),
                node.name
            ))?;
        }
        print(&format!(
            "{}: keep it off the nodes: whoever has it can make a node\n\
             Then: edit [[group]] in pmemhad.conf, `pmemhad check`, and start pmemhad on each node.\n",
            self.dir.join("ca.key").display()
        ))
    }
}

fn parse_node(text: &str) -> Result<Node, Failure> {
    let (name, address) = text.split_once('=').ok_or_else(|| {
        Failure::new(USAGE, format!("--node {text}: write NAME=HOST:PORT, such as alpha=10.0.0.1:7475"))
    })?;
    Ok(Node { name: name.into(), address: address.into() })
}

/// A configuration with every key that most nodes need, the others commented out.
fn configuration(install: &Path, node: &Node, others: &[&Node]) -> String {
    let install = install.display();
    let name = &node.name;
    let listen = match node.address.parse::<SocketAddr>() {
        Ok(address) => format!("listen = \"{address}\"      # where the other nodes reach this one\n"),
        Err(_) => {
            let (host, port) = node.address.rsplit_once(':').unwrap_or((&node.address, "7475"));
            format!(
                "listen = \"0.0.0.0:{port}\"\nadvertise = \"{host}\"      # where the other nodes reach this one\n"
            )
        }
    };
    let mut text = format!(
        "# pmemhad.conf(5) describes every key. `pmemhad check FILE` says what is wrong.\n\n\
         [node]\n\
         name = \"{name}\"                     # as in the certificate\n\
         {listen}\
         # state_dir = \"/var/lib/pmemha\"\n\
         # runtime_dir = \"/run/pmemha\"\n\n\
         [tls]\n\
         ca = \"{install}/ca.pem\"\n\
         cert = \"{install}/node.pem\"\n\
         key = \"{install}/node.key\"\n\n\
         # [power]\n\
         # source = \"file\"\n\
         # path = \"/run/power/online\"        # 1 on line power, 0 on battery\n\n\
         # [metrics]\n\
         # listen = \"127.0.0.1:9475\"         # for Prometheus; whoever reaches it may read it\n"
    );
    if others.is_empty() {
        text.push_str(
            "\n[[group]]\nname = \"example\"\nprotect = [\"/mnt/pmem/example/*.pool\"]\n# destinations = [\"beta\"]\n",
        );
        return text;
    }
    for Node { name, address } in others {
        text.push_str(&format!("\n[[peer]]\nname = \"{name}\"\naddress = \"{address}\"\n"));
    }
    let quoted = |nodes: Vec<&str>| nodes.iter().map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(", ");
    let destinations = quoted(others.iter().map(|n| n.name.as_str()).collect());
    let over = match others.len() {
        1 => "",
        _ => {
            "# commit_over = \"quorum\"           # of how many destinations commit speaks: any, quorum, all\n"
        }
    };
    text.push_str(&format!(
        "\n# The application that runs here, and where it is kept safe.\n\
         [[group]]\n\
         name = \"from-{name}\"\n\
         protect = [\"/mnt/pmem/{name}/*.pool\"]\n\
         destinations = [{destinations}]\n\
         # users = [\"postgres\"]             # who may attach besides root\n\
         # log_size = \"64MiB\"\n\
         # commit = \"received\"              # every drain waits: local, received, durable, applied\n\
         {over}\
         # on_death = \"failover\"            # or restart, none\n\
         # command = [\"/usr/bin/program\"]   # started and supervised by pmemhad\n"
    ));
    for Node { name: other, .. } in others {
        let owners = others.iter().map(|n| n.name.as_str()).filter(|owner| owner != other);
        let from = quoted([other.as_str()].into_iter().chain(owners).collect());
        text.push_str(&format!(
            "\n# The application of {other}, kept safe here.\n\
             [[replica]]\n\
             group = \"from-{other}\"\n\
             from = [{from}]                   # every node that may own it one day\n\
             dir = \"/var/lib/pmemha-replica/from-{other}\"\n\
             # paths = {{ \"/mnt/pmem/{other}\" = \"/mnt/pmem/{other}\" }}\n\
             # start = [\"/usr/bin/program\"]     # after a promotion\n"
        ));
    }
    text
}
