//! Debian's `docker-registry`, with TLS of an authority of our own, and with passwords or tokens.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use coracle_fixtures::small;
use coracle_tests::image::Store;
use coracle_tests::registry::{Registry, Reply};
use coracle_tests::{Host, Outcome, command, privileged};
use serde_json::json;

use super::{assert_whole, can_run};

/// Makes an authority, and a certificate of it for the loopback: `ca.pem`, `server.pem`, `server.key`.
const CERTIFICATES: &str = r#"
set -e
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=boats -keyout ca.key -out ca.pem \
    -addext basicConstraints=critical,CA:TRUE
openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr
printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' >extensions
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out server.pem
"#;

/// A token that allows all of `boats/small`, signed by the server's key (distribution, "Token Authentication").
const TOKEN: &str = r#"
set -e
encode() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }
head=$(printf '{"alg":"RS256","typ":"JWT","x5c":["%s"]}' "$(openssl x509 -in server.pem -outform DER | openssl base64 -A)" | encode)
now=$(date +%s)
body=$(printf '{"iss":"boats","sub":"me","aud":"registry","exp":%s,"nbf":%s,"iat":%s,"jti":"1","access":[{"type":"repository","name":"boats/small","actions":["pull","push"]}]}' \
    $((now + 600)) $((now - 60)) $now | encode)
printf '%s.%s.%s' $head $body $(printf '%s.%s' $head $body | openssl dgst -sha256 -sign server.key -binary | encode)
"#;

/// A registry that runs, and what is needed to talk to it.
struct Real {
    child: Child,
    directory: PathBuf,
    port: u16,
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Real {
    fn can_run(host: &Host) -> bool {
        can_run(host)
            && ["docker-registry", "openssl", "htpasswd", "python3"]
                .iter()
                .all(|program| host.needs_program(program))
    }

    fn shell(directory: &Path, script: &str) -> String {
        let output = Command::new("sh").args(["-c", script]).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts it with TLS and this section `auth`.
    fn start(directory: PathBuf, auth: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let root = directory.display();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\n\
             http:\n  addr: 127.0.0.1:{port}\n  tls: {{certificate: {root}/server.pem, key: {root}/server.key}}\n{auth}"
        );
        fs::write(directory.join("registry.yml"), config).unwrap();
        let hosts = directory.join(format!("hosts/localhost:{port}"));
        fs::create_dir_all(&hosts).unwrap();
        fs::write(hosts.join("hosts.toml"), format!("ca = \"{root}/ca.pem\"\n")).unwrap();
        let auths = json!({"auths": {format!("localhost:{port}"): {"auth": "bWU6aHVzaA=="}}});
        fs::write(directory.join("auth.json"), auths.to_string()).unwrap();
        let log = fs::File::create(directory.join("log")).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", "registry.yml"])
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        command::eventually("the registry listens", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self { child, directory, port }
    }

    fn image(&self) -> String {
        format!("localhost:{}/boats/small:1", self.port)
    }

    fn call(&self, store: &Store<'_>, verb: &[&str]) -> Outcome {
        let path = |name: &str| self.directory.join(name).to_str().unwrap().to_owned();
        let options = ["--auth-file", &path("auth.json"), "--hosts-dir", &path("hosts")];
        let outcome = store.call(&[verb, &options].concat());
        assert!(!format!("{outcome:?}").contains("hush"), "{outcome:?}");
        outcome
    }

    /// Pushes the small image and pulls it into another store.
    fn round_trip(&self, host: &Host) {
        let (from, to) = (Store::new(host), Store::new(host));
        from.import(&small::image());
        let pushed = self.call(&from, &["push", "coracle/small", &self.image()]).succeeds();
        assert!(!pushed.stderr.contains("already there"), "{}", pushed.stderr);
        let again = self.call(&from, &["push", "coracle/small", &self.image(), "--json"]).succeeds();
        assert!(
            !again.stderr.contains("\"moved\""),
            "what the registry has is not sent again: {}",
            again.stderr
        );
        self.call(&to, &["pull", &self.image()]).succeeds();
        assert_whole(&to, &self.image(), &small::image());
    }
}

#[test]
fn an_image_goes_through_a_real_registry_with_tls_and_a_password() {
    privileged(|host| {
        if !Real::can_run(host) {
            return;
        }
        let directory = host.directory();
        Real::shell(&directory, CERTIFICATES);
        Real::shell(&directory, "htpasswd -Bbn me hush >users");
        let auth = format!("auth: {{htpasswd: {{realm: boats, path: {}/users}}}}\n", directory.display());
        let real = Real::start(directory, &auth);
        real.round_trip(host);
        let store = Store::new(host);
        let tags = real.call(&store, &["tags", &real.image()]).succeeds();
        assert_eq!(tags.text(), "1");
        let found = real.call(&store, &["search", &format!("localhost:{}/small", real.port)]).succeeds();
        assert_eq!(found.text(), format!("localhost:{}/boats/small", real.port));
        // Without the authority nothing is said to it; without a password it says no.
        let hosts = host.directory();
        let strange = ["pull", &real.image(), "--quiet", "--hosts-dir", hosts.to_str().unwrap()];
        store.call(&strange).fails_with(&["invalid peer certificate", "hosts.toml"]);
        let hosts = real.directory.join("hosts");
        let nobody = [
            "pull",
            &real.image(),
            "--quiet",
            "--auth-file",
            "/nowhere",
            "--hosts-dir",
            hosts.to_str().unwrap(),
        ];
        store.call(&nobody).fails_with(&["answers 401", "docker login"]);
    });
}

#[test]
fn an_image_goes_through_a_real_registry_with_tokens() {
    privileged(|host| {
        if !Real::can_run(host) {
            return;
        }
        let directory = host.directory();
        Real::shell(&directory, CERTIFICATES);
        let token = Real::shell(&directory, TOKEN);
        let service = Registry::start(move |request| match request.header("authorization") {
            Some("Basic bWU6aHVzaA==") => Reply::of(json!({"token": token}).to_string()),
            _ => Reply::status(401),
        });
        // The registry is encrypted, so its token service has to be, too: one that isn't is refused.
        let realm = format!("http://{}/token", service.host().replace("127.0.0.1", "localhost"));
        let bundle = directory.join("ca.pem").display().to_string();
        let auth = format!(
            "auth: {{token: {{realm: \"{realm}\", service: registry, issuer: boats, rootcertbundle: {bundle}}}}}\n"
        );
        let real = Real::start(directory, &auth);
        let store = Store::new(host);
        real.call(&store, &["pull", &real.image(), "--quiet"]).fails_with(&["which is not encrypted"]);
        assert!(service.asked().is_empty());
        let tls = tls_before(host, &real, &service);
        let config = fs::read_to_string(real.directory.join("registry.yml")).unwrap();
        let auth = config[config.find("auth:").unwrap()..]
            .replace(&realm, &format!("https://localhost:{}/token", tls.1));
        let directory = real.directory.clone();
        drop(real);
        let real = Real::start(directory, &auth);
        real.round_trip(host);
        assert!(service.asked().iter().all(|request| request.path.contains("service=registry")));
    });
}

/// Puts TLS before a server, and returns the process that does and its port.
fn tls_before(host: &Host, real: &Real, service: &Registry) -> (Guard, u16) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let script = host.directory().join("tls.py");
    fs::write(&script, TLS_PROXY).unwrap();
    let child = Command::new("python3")
        .args([script.to_str().unwrap(), &port.to_string(), &service.host()])
        .current_dir(&real.directory)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    command::eventually("the proxy listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    (Guard(child), port)
}

/// A process that ends with the test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const TLS_PROXY: &str = r#"
import socket, ssl, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("server.pem", "server.key")
host, port = sys.argv[2].split(":")
def copy(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    target.close()
def serve(connection):
    try:
        client = context.wrap_socket(connection, server_side=True)
    except OSError:
        return
    server = socket.create_connection((host, int(port)))
    threading.Thread(target=copy, args=(client, server), daemon=True).start()
    copy(server, client)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;
