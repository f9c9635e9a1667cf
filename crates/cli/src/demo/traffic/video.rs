//! Motion JPEG: a file of concatenated pictures, or a stream over HTTP.
//!
//! Pictures are cut out by reading JPEG's own structure, so that concatenated pictures and `multipart/x-mixed-replace`
//! parts are read alike: what lies between pictures (part headers) is skipped, up to a limit. Memory is bounded by one picture
//! and one read, whatever comes in.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::Duration;

/// Largest picture that is read: four of them in one invocation still fit a payload of 6 MB.
pub(crate) const MAX_PICTURE_BYTES: usize = 1024 * 1024;
/// Most bytes between two pictures; headers of a part are far smaller.
pub(crate) const MAX_GAP_BYTES: usize = 16 * 1024;
/// Most pictures of one clip: ten minutes at 100 pictures per second.
pub(crate) const MAX_PICTURES: usize = 60_000;
/// Most bytes of one clip kept in memory.
pub(crate) const MAX_CLIP_BYTES: usize = 512 * 1024 * 1024;

const READ_BYTES: usize = 64 * 1024;
const STREAM_SILENCE: Duration = Duration::from_secs(10);

/// Why there is no next picture.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot open video `{source_name}`")]
    Open { source_name: String, source: std::io::Error },
    #[error("cannot open video stream `{url}`")]
    Connect { url: String, source: Box<ureq::Error> },
    #[error("cannot read the video after {pictures} pictures")]
    Read { pictures: u64, source: std::io::Error },
    #[error("no JPEG picture in {MAX_GAP_BYTES} bytes after picture {pictures}: this is not motion JPEG")]
    NotMotionJpeg { pictures: u64 },
    #[error("picture {index} is no JPEG: byte {at} is not what the format asks for")]
    Broken { index: u64, at: usize },
    #[error("picture {index} is longer than {MAX_PICTURE_BYTES} bytes")]
    TooLong { index: u64 },
    #[error("the video ends inside picture {index}, {bytes} bytes after its start")]
    Truncated { index: u64, bytes: usize },
    #[error("the video `{source_name}` holds no picture")]
    Empty { source_name: String },
    #[error("the wanted part of the video needs more than {MAX_CLIP_BYTES} bytes; ask for fewer seconds")]
    ClipTooLong,
}

/// The pictures of a motion JPEG source in order, each with its number from 0. After an error nothing more comes.
#[derive(Debug)]
pub(crate) struct Pictures<R> {
    input: R,
    buffer: Vec<u8>,
    index: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Reading,
    Drained,
    Ended,
}

enum Scan {
    Complete { bytes: usize },
    More,
    Broken { at: usize },
}

/// Opens `source`: an `http://` address or a path.
///
/// # Errors
/// What cannot be opened or connected to.
pub(crate) fn open(source: &str) -> Result<Pictures<Box<dyn Read + Send>>, Error> {
    if source.starts_with("http://") {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_connect(Some(STREAM_SILENCE))
            .timeout_recv_response(Some(STREAM_SILENCE))
            .build()
            .into();
        let answer =
            agent.get(source).call().map_err(|error| Error::Connect { url: source.to_owned(), source: Box::new(error) })?;
        return Ok(Pictures::new(Box::new(answer.into_body().into_reader())));
    }
    let file = File::open(Path::new(source)).map_err(|error| Error::Open { source_name: source.to_owned(), source: error })?;
    Ok(Pictures::new(Box::new(file)))
}

/// Reads at most `count` pictures of `source` into memory. A live stream is read for as long as that takes.
///
/// # Errors
/// As [`open`] and [`Pictures`]; a source without a picture; more than [`MAX_CLIP_BYTES`].
pub(crate) fn clip(source: &str, count: usize) -> Result<Vec<Vec<u8>>, Error> {
    let mut pictures = Vec::new();
    let mut bytes = 0;
    for picture in open(source)?.take(count.min(MAX_PICTURES)) {
        let (_, picture) = picture?;
        bytes += picture.len();
        if MAX_CLIP_BYTES < bytes {
            return Err(Error::ClipTooLong);
        }
        pictures.push(picture);
    }
    if pictures.is_empty() {
        return Err(Error::Empty { source_name: source.to_owned() });
    }
    Ok(pictures)
}

impl<R: Read> Pictures<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, buffer: Vec::new(), index: 0, state: State::Reading }
    }

    fn next_picture(&mut self) -> Result<Option<Vec<u8>>, Error> {
        loop {
            self.skip_to_start()?;
            if !self.buffer.is_empty() {
                match scan(&self.buffer) {
                    Scan::Complete { bytes } if bytes <= MAX_PICTURE_BYTES => {
                        let rest = self.buffer.split_off(bytes);
                        return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
                    }
                    Scan::Complete { .. } => return Err(Error::TooLong { index: self.index }),
                    Scan::Broken { at } => return Err(Error::Broken { index: self.index, at }),
                    Scan::More if MAX_PICTURE_BYTES < self.buffer.len() => {
                        return Err(Error::TooLong { index: self.index });
                    }
                    Scan::More => {}
                }
            }
            if self.state == State::Drained {
                let bytes = self.buffer.len();
                return if bytes < 2 { Ok(None) } else { Err(Error::Truncated { index: self.index, bytes }) };
            }
            self.fill()?;
        }
    }

    /// Drops what lies before the next start of a picture; afterwards the buffer is empty or begins with (part of) one.
    fn skip_to_start(&mut self) -> Result<(), Error> {
        let mut skipped = 0;
        while !self.buffer.starts_with(&[0xff, 0xd8]) {
            match self.buffer.windows(2).position(|pair| pair == [0xff, 0xd8]) {
                Some(at) => {
                    skipped += at;
                    self.buffer.drain(..at);
                }
                None => {
                    let keep = usize::from(self.buffer.last() == Some(&0xff));
                    skipped += self.buffer.len() - keep;
                    self.buffer.drain(..self.buffer.len() - keep);
                    if self.state == State::Drained || MAX_GAP_BYTES < skipped {
                        break;
                    }
                    self.fill()?;
                }
            }
        }
        if MAX_GAP_BYTES < skipped { Err(Error::NotMotionJpeg { pictures: self.index }) } else { Ok(()) }
    }

    fn fill(&mut self) -> Result<(), Error> {
        let held = self.buffer.len();
        self.buffer.resize(held + READ_BYTES, 0);
        let read = loop {
            match self.input.read(&mut self.buffer[held..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(held + read.as_ref().copied().unwrap_or(0));
        match read {
            Ok(0) => self.state = State::Drained,
            Ok(_) => {}
            Err(source) => return Err(Error::Read { pictures: self.index, source }),
        }
        Ok(())
    }
}

impl<R: Read> Iterator for Pictures<R> {
    type Item = Result<(u64, Vec<u8>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Ended {
            return None;
        }
        match self.next_picture() {
            Ok(Some(picture)) => {
                self.index += 1;
                Some(Ok((self.index - 1, picture)))
            }
            Ok(None) => {
                self.state = State::Ended;
                None
            }
            Err(error) => {
                self.state = State::Ended;
                Some(Err(error))
            }
        }
    }
}

/// Finds the end of the JPEG picture that `bytes` begin with (ITU T.81, annex B: markers, segments, entropy-coded data).
fn scan(bytes: &[u8]) -> Scan {
    let mut at = 2;
    loop {
        let Some(&first) = bytes.get(at) else { return Scan::More };
        if first != 0xff {
            return Scan::Broken { at };
        }
        let Some(&marker) = bytes.get(at + 1) else { return Scan::More };
        match marker {
            0xff => at += 1, // fill byte
            0xd9 => return Scan::Complete { bytes: at + 2 },
            0x01 | 0xd0..=0xd7 => at += 2, // markers without a segment
            0x00 | 0xd8 => return Scan::Broken { at: at + 1 },
            _ => {
                let Some(length) = bytes.get(at + 2..at + 4) else { return Scan::More };
                let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
                if length < 2 {
                    return Scan::Broken { at: at + 2 };
                }
                at += 2 + length;
                if marker == 0xda {
                    match end_of_coded_data(bytes, at) {
                        Some(end) => at = end,
                        None => return Scan::More,
                    }
                }
            }
        }
    }
}

/// The position of the first marker after entropy-coded data that begins at `from`; stuffed zeros and restarts belong to it.
fn end_of_coded_data(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == 0xff)?;
        match bytes.get(at + 1)? {
            0x00 | 0xd0..=0xd7 => at += 2,
            0xff => at += 1,
            _ => return Some(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::*;
    use crate::demo::traffic::picture::{Grey, encode_rgb};

    fn picture(shade: u8) -> Vec<u8> {
        encode_rgb(&vec![shade; 48 * 32 * 3], 48, 32, 80).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        Pictures::new(bytes).map(|picture| picture.map(|(_, jpeg)| jpeg)).collect()
    }

    #[test]
    fn concatenated_pictures_come_out_as_they_went_in() {
        let wanted = vec![picture(10), picture(120), picture(250)];
        assert_eq!(read(&wanted.concat()).unwrap(), wanted);
    }

    #[test]
    fn part_headers_between_pictures_are_skipped() {
        let (a, b) = (picture(10), picture(90));
        let header = b"\r\n--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 700\r\n\r\n".to_vec();
        let stream = [&header[..], &a, &header, &b, b"\r\n--frame--\r\n"].concat();
        assert_eq!(read(&stream).unwrap(), vec![a, b]);
    }

    #[test]
    fn a_stream_over_http_is_read_like_a_file() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let wanted = vec![picture(40), picture(80)];
        let body = [&b"--b\r\nContent-Type: image/jpeg\r\n\r\n"[..], &wanted[0], b"\r\n--b\r\n\r\n", &wanted[1]].concat();
        let serving = std::thread::spawn(move || {
            let (mut peer, _) = server.accept().unwrap();
            let mut request = [0; 1_024];
            let _ = peer.read(&mut request).unwrap();
            peer.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n").unwrap();
            peer.write_all(&body).unwrap();
        });
        assert_eq!(clip(&format!("http://{address}/camera"), 10).unwrap(), wanted);
        serving.join().unwrap();
    }

    #[test]
    fn a_video_cut_off_inside_a_picture_says_which() {
        let whole = [picture(10), picture(20)].concat();
        let error = read(&whole[..whole.len() - 5]).unwrap_err();
        assert!(matches!(error, Error::Truncated { index: 1, .. }), "{error}");
    }

    #[test]
    fn other_files_are_refused_as_no_motion_jpeg() {
        let error = read(&vec![b'x'; 100_000]).unwrap_err();
        assert!(matches!(error, Error::NotMotionJpeg { pictures: 0 }), "{error}");
    }

    #[test]
    fn a_picture_over_the_limit_is_refused() {
        let mut endless = picture(10);
        endless.truncate(endless.len() - 2);
        endless.extend(vec![0x11; MAX_PICTURE_BYTES + 1]);
        let error = read(&endless).unwrap_err();
        assert!(matches!(error, Error::TooLong { index: 0 }), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(head in any::<bool>(), bytes in prop::collection::vec(any::<u8>(), 0..4_096)) {
            let stream = if head { [&[0xff, 0xd8][..], &bytes].concat() } else { bytes };
            for picture in Pictures::new(&stream[..]) {
                let Ok((_, jpeg)) = picture else { break };
                drop(Grey::decode(&jpeg));
            }
        }

        #[test]
        fn a_damaged_picture_is_read_or_refused(at in 0_usize..600, value in any::<u8>(), cut in 0_usize..600) {
            let mut stream = [picture(60), picture(70)].concat();
            let length = stream.len();
            stream[at % length] = value;
            stream.truncate(length - cut % length);
            for picture in Pictures::new(&stream[..]) {
                let Ok((_, jpeg)) = picture else { break };
                drop(Grey::decode(&jpeg));
            }
        }
    }
}
