//! Where spans go: to standard output, and as OTLP to whom the configuration names.

use std::cell::Cell;
use std::sync::Mutex;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, async_trait};

use super::*;
use crate::{print::Format, telemetry::DropCause};

/// Standard output whose reader has gone.
struct Broken<'a>(&'a Cell<u32>);

impl Write for Broken<'_> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        self.0.set(self.0.get() + 1);
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn spans_are_exported_when_they_cannot_be_printed() {
    let telemetry = Telemetry::default();
    let (queue, received) = export::queue::bounded(100, 100, 1, telemetry.clone());
    let writes: &'static Cell<u32> = Box::leak(Box::new(Cell::new(0)));
    let node = Node::new();
    let mut stages = Stages::new(
        Decoder::new(DecodeConfig::default()),
        Stitcher::new(StitchConfig::default(), RandomIds::new([1, 2, 3, 4])),
        Processes::new(ProcTree::new(node.proc.path()), Selection::default()),
        SpanBuilder::new(SpanConfig::default(), Clock::new(0, 0)),
        GpuSpans::new(None),
        Out { queue, printer: Some(Printer::new(Box::new(Broken(writes)), Format::Text)), telemetry },
        0,
    );
    let (client, server) = both_ends();
    stages.take(&mut Wire::merge(&[&client, &server]), &mut Script::default()).unwrap();
    assert_eq!(spans(received).len(), 2);
    assert_eq!(writes.get(), 1, "it was tried again");
}

#[derive(Clone, Default)]
struct Destination(Arc<Mutex<usize>>);

#[async_trait]
impl TraceService for Destination {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let groups = request.into_inner().resource_spans;
        *self.0.lock().unwrap() +=
            groups.iter().flat_map(|group| &group.scope_spans).map(|scope| scope.spans.len()).sum::<usize>();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test]
async fn records_come_out_as_otlp() {
    let destination = Destination::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let service = TraceServiceServer::new(destination.clone());
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));

    let variable = |name: &str| (name == "COATI_AGENT_OTLP_ENDPOINT").then(|| endpoint.clone());
    let config = Config::read(None, &variable).unwrap();
    let telemetry = Telemetry::default();
    let (queue, exporter) = exporter(&config.export_settings(), &telemetry, || 0.0).unwrap();
    let mut stages = Node::new().stages(queue, &telemetry, config.selection());
    let (_deadline, end) = watch::channel(None);
    let exporting = tokio::spawn(exporter.run(end));

    let (client, server) = both_ends();
    let mut script = Script { drains: [Wire::merge(&[&client, &server])].into(), ..Script::default() };
    let stop = Arc::clone(&script.stop);
    capture(&mut script, &mut stages, &std::sync::mpsc::channel().1, &stop, |_| {}).unwrap();
    drop(stages);
    exporting.await.unwrap();
    assert_eq!(*destination.0.lock().unwrap(), 2);
    assert_eq!(telemetry.spans_exported.get(), 2);
    assert_eq!(DropCause::ALL.map(|cause| telemetry.spans_dropped(cause).get()), [0; 6]);
}
