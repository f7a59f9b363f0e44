//! A disk that fails when it is told to.

use super::*;

/// A disk that fails on demand.
#[derive(Clone, Default)]
pub(super) struct FaultyDisk(Arc<Mutex<Faults>>);

#[derive(Default)]
pub(super) struct Faults {
    /// Bytes that still fit.
    pub(super) room: Option<usize>,
    pub(super) failing_syncs: u32,
    pub(super) failing_truncates: u32,
    pub(super) failing_creates: u32,
}

struct FaultyFile {
    file: Box<dyn SegmentFile>,
    faults: Arc<Mutex<Faults>>,
}

fn failed(count: &mut u32) -> io::Result<()> {
    if *count == 0 {
        return Ok(());
    }
    *count -= 1;
    Err(io::Error::other("injected"))
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        failed(&mut self.0.lock().unwrap().failing_creates)?;
        Ok(self.wrap(RealDisk.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        Ok(self.wrap(RealDisk.open(path)?))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
}

impl FaultyDisk {
    fn wrap(&self, file: Box<dyn SegmentFile>) -> Box<dyn SegmentFile> {
        Box::new(FaultyFile { file, faults: Arc::clone(&self.0) })
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.0.lock().unwrap());
    }
}

impl SegmentFile for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut faults = self.faults.lock().unwrap();
        let Some(room) = faults.room.as_mut() else { return self.file.append(bytes) };
        let fits = bytes.len().min(*room);
        *room -= fits;
        self.file.append(&bytes[..fits])?;
        if fits == bytes.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        failed(&mut self.faults.lock().unwrap().failing_syncs)?;
        self.file.sync()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        failed(&mut self.faults.lock().unwrap().failing_truncates)?;
        self.file.truncate(len)
    }
}
