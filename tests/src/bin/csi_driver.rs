//! A driver of the Container Storage Interface for the tests: volumes are directories, staged and published by bind mounts,
//! as the sample driver of its authors does. It is real but for what it is told to do wrong.
//!
//!   coracle-csi-driver SOCKET DIRECTORY
//!
//! `DIRECTORY/VOLUME` is a volume, `DIRECTORY/log` has a line for each call, with what became of it; `DIRECTORY/fault` may
//! hold what is to go wrong, once: `METHOD before|after WHAT`, where it `dies`, has the caller's runtime die (`killer`),
//! `hangs`, or fails with a number of gRPC's. With `DIRECTORY/simple` it can do nothing that is optional,
//! with `DIRECTORY/unstaged` all but stage.

#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::fs;
use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prost::Message;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

#[path = "../../../isolators/csi/src/messages.rs"]
#[expect(unreachable_pub, reason = "the plugin has the same file")]
mod messages;
use messages::*;

/// The driver's state.
struct Driver {
    directory: PathBuf,
}

fn main() {
    let mut args = std::env::args().skip(1).map(PathBuf::from);
    let (Some(socket), Some(directory)) = (args.next(), args.next()) else { return };
    let _ = fs::remove_file(&socket);
    let driver = Arc::new(Driver { directory });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime.map(|runtime| {
        runtime.block_on(async {
            let incoming = UnixListenerStream::new(UnixListener::bind(&socket)?);
            let identity = Api::<false>(driver.clone());
            let router = Server::builder().add_service(Api::<true>(driver)).add_service(identity);
            router.serve_with_incoming(incoming).await.map_err(std::io::Error::other)
        })
    });
    assert!(matches!(served, Ok(Ok(()))), "{served:?}");
}

/// A service: the node's, or that of the driver's identity.
#[derive(Clone)]
struct Api<const NODE: bool>(Arc<Driver>);

impl NamedService for Api<true> {
    const NAME: &'static str = "csi.v1.Node";
}

impl NamedService for Api<false> {
    const NAME: &'static str = "csi.v1.Identity";
}

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<const NODE: bool> Service<http::Request<Body>> for Api<NODE> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let driver = self.0.clone();
        Box::pin(async move {
            Ok(match method.as_str() {
                "Probe" => answer(driver, method, request, Driver::probe).await,
                "NodeGetCapabilities" => answer(driver, method, request, Driver::capabilities).await,
                "NodeStageVolume" => answer(driver, method, request, Driver::stage).await,
                "NodeUnstageVolume" => answer(driver, method, request, Driver::unstage).await,
                "NodePublishVolume" => answer(driver, method, request, Driver::publish).await,
                "NodeUnpublishVolume" => answer(driver, method, request, Driver::unpublish).await,
                "NodeGetVolumeStats" => answer(driver, method, request, Driver::count).await,
                "NodeExpandVolume" => answer(driver, method, request, Driver::expand).await,
                _ => Status::unimplemented(method).into_http(),
            })
        })
    }
}

/// One call: the fault that is due, what is to be done, the line in the log.
struct Call<I, O> {
    driver: Arc<Driver>,
    method: String,
    work: fn(&Driver, &I) -> Result<O, Status>,
}

async fn answer<I, O>(
    driver: Arc<Driver>,
    method: String,
    request: http::Request<Body>,
    work: fn(&Driver, &I) -> Result<O, Status>,
) -> http::Response<Body>
where
    I: Message + Default + 'static,
    O: Message + Default + 'static,
{
    let call = Call { driver, method, work };
    Grpc::new(ProstCodec::<O, I>::default()).unary(call, request).await
}

impl<I: Message + Default + 'static, O: Message + Default + 'static> UnaryService<I> for Call<I, O> {
    type Response = O;
    type Future = Answer<Result<Response<O>, Status>>;

    fn call(&mut self, request: Request<I>) -> Self::Future {
        let (driver, method, work) = (self.driver.clone(), self.method.clone(), self.work);
        let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred?.pid());
        Box::pin(async move {
            driver.fault(&method, "before", peer).await?;
            let done = work(&driver, request.get_ref());
            driver.log(&method, done.as_ref().err());
            driver.fault(&method, "after", peer).await?;
            done.map(Response::new)
        })
    }
}

impl Driver {
    /// Does wrong what is to be done wrong at this moment.
    async fn fault(&self, method: &str, moment: &str, peer: Option<i32>) -> Result<(), Status> {
        let path = self.directory.join("fault");
        let told = fs::read_to_string(&path).unwrap_or_default();
        let words: Vec<&str> = told.split_whitespace().collect();
        let [of, at, what] = words[..] else { return Ok(()) };
        if (of, at) != (method, moment) {
            return Ok(());
        }
        let _ = fs::remove_file(path);
        match what {
            "dies" => std::process::abort(),
            "killer" => kill_runtime(peer),
            "hangs" => tokio::time::sleep(Duration::from_secs(1000)).await,
            number => {
                return Err(Status::new(number.parse::<i32>().unwrap_or(2).into(), "it was told to fail"));
            }
        }
        Ok(())
    }

    fn log(&self, method: &str, failure: Option<&Status>) {
        let file = fs::OpenOptions::new().create(true).append(true).open(self.directory.join("log"));
        let outcome = failure.map_or("ok".to_owned(), |status| status.message().to_owned());
        let _ = file.and_then(|mut file| writeln!(file, "{method} {outcome}"));
    }

    fn probe(&self, _: &Empty) -> Result<ProbeResponse, Status> {
        Ok(ProbeResponse { ready: Some(Bool { value: true }) })
    }

    fn capabilities(&self, _: &Empty) -> Result<Capabilities, Status> {
        let has = |name: &str| self.directory.join(name).exists();
        let mut kinds = if has("simple") { Vec::new() } else { vec![STAGES, COUNTS, EXPANDS] };
        kinds.retain(|kind| *kind != STAGES || !has("unstaged"));
        let told = kinds.into_iter().map(|kind| Capability { rpc: Some(Rpc { kind }) });
        Ok(Capabilities { capabilities: told.collect() })
    }

    fn volume(&self, id: &str) -> Result<PathBuf, Status> {
        let path = self.directory.join(id);
        let is_there = !id.is_empty() && !id.contains('/') && path.is_dir();
        is_there.then_some(path).ok_or_else(|| Status::not_found(format!("there is no volume {id}")))
    }

    fn stage(&self, request: &Stage) -> Result<Empty, Status> {
        if request.volume_context.get("locked").is_some_and(|_| !request.secrets.contains_key("word")) {
            return Err(Status::unauthenticated("the volume is locked"));
        }
        bind(&self.volume(&request.volume_id)?, Path::new(&request.staging_target_path), false)
    }

    fn unstage(&self, request: &Unstage) -> Result<Empty, Status> {
        unmount(Path::new(&request.staging_target_path))
    }

    fn publish(&self, request: &Publish) -> Result<Empty, Status> {
        let source = match request.staging_target_path.as_str() {
            "" => self.volume(&request.volume_id)?,
            staging if is_mounted(Path::new(staging)) => staging.into(),
            _ => return Err(Status::failed_precondition("the volume is not staged")),
        };
        let target = Path::new(&request.target_path);
        let _ = fs::create_dir(target);
        bind(&source, target, request.readonly)
    }

    fn unpublish(&self, request: &Unpublish) -> Result<Empty, Status> {
        let target = Path::new(&request.target_path);
        unmount(target)?;
        let _ = fs::remove_dir(target);
        Ok(Empty {})
    }

    fn count(&self, request: &Count) -> Result<Counted, Status> {
        if !is_mounted(Path::new(&request.volume_path)) {
            return Err(Status::not_found("it is not published there"));
        }
        let files = fs::read_dir(&request.volume_path).map_err(|e| Status::internal(e.to_string()))?;
        let used =
            files.flatten().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum::<u64>();
        let used = i64::try_from(used).unwrap_or(0);
        Ok(Counted { usage: vec![VolumeUsage { available: 1000 - used, total: 1000, used, unit: 1 }] })
    }

    fn expand(&self, request: &Expand) -> Result<Expanded, Status> {
        self.volume(&request.volume_id)?;
        Ok(Expanded {
            capacity_bytes: request.capacity_range.as_ref().map_or(0, |range| range.required_bytes),
        })
    }
}

/// Kills the runtime that the plugin which calls belongs to, and waits until the plugin is gone with it.
fn kill_runtime(plugin: Option<i32>) {
    let Some(plugin) = plugin else { return };
    let status = fs::read_to_string(format!("/proc/{plugin}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap_or_default();
    let _ = Command::new("kill").args(["-9", parent]).status();
    while Path::new(&format!("/proc/{plugin}/exe")).exists()
        && fs::read_link(format!("/proc/{plugin}/exe")).is_ok()
    {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How often something is mounted there.
fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == path))
}

fn bind(source: &Path, target: &Path, readonly: bool) -> Result<Empty, Status> {
    if is_mounted(target) {
        return Ok(Empty {});
    }
    let options = if readonly { "bind,ro" } else { "bind" };
    let mounted = Command::new("mount").args(["-o", options]).args([source, target]).output();
    match mounted {
        Ok(output) if output.status.success() => Ok(Empty {}),
        output => Err(Status::internal(format!("{output:?}"))),
    }
}

fn unmount(target: &Path) -> Result<Empty, Status> {
    if !is_mounted(target) {
        return Ok(Empty {});
    }
    match Command::new("umount").arg(target).output() {
        Ok(output) if output.status.success() => Ok(Empty {}),
        output => Err(Status::internal(format!("{output:?}"))),
    }
}
