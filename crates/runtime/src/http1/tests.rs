use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{DuplexStream, ReadBuf};

use super::*;

/// A client that sends its pieces one per read and then closes.
#[derive(Debug, Default)]
struct Script {
    pieces: VecDeque<Vec<u8>>,
    written: Vec<u8>,
    writes: usize,
}

impl Script {
    fn new(pieces: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self { pieces: pieces.into_iter().filter(|piece| !piece.is_empty()).collect(), ..Self::default() }
    }

    fn whole(text: &[u8]) -> Self {
        Self::new([text.to_vec()])
    }
}

impl AsyncRead for Script {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(mut piece) = self.pieces.pop_front() {
            let rest = piece.split_off(piece.len().min(buffer.remaining()));
            buffer.put_slice(&piece);
            if !rest.is_empty() {
                self.pieces.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.written.extend_from_slice(bytes);
        self.writes += 1;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, _: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        for slice in slices {
            self.written.extend_from_slice(slice);
        }
        self.writes += 1;
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

const MAX_BODY: usize = 1 << 16;

/// Reads requests and answers each with 200 until the stream ends or is refused: what was read, and the refusal's status.
fn serve(script: Script) -> (Vec<String>, Option<u16>, Script) {
    run(async {
        let mut connection = Connection::new(script);
        let mut seen = Vec::new();
        let outcome = loop {
            match one(&mut connection).await {
                Ok(Some(text)) => seen.push(text),
                Ok(None) => break None,
                Err(error) => break Some(error.status().map_or(0, |status| status.as_u16())),
            }
        };
        (seen, outcome, connection.into_parts().0)
    })
}

async fn one(connection: &mut Connection<Script>) -> Result<Option<String>, Error> {
    let Some(parts) = connection.read_head(&Limits::default()).await? else { return Ok(None) };
    let body = connection.read_body(&parts, MAX_BODY).await?;
    let trailers = connection.take_trailers();
    connection.write_response(Response::new(Bytes::from_static(b"ok")), After::KeepAlive).await?;
    let text = format!("{} {} {:?} {:?} {body:?} {trailers:?}", parts.method, parts.uri, parts.version, parts.headers);
    Ok(Some(text))
}

fn check(input: &str, requests: usize, status: Option<u16>) {
    let (seen, outcome, _) = serve(Script::whole(input.as_bytes()));
    assert_eq!((seen.len(), outcome), (requests, status), "{input:?}: {seen:?}");
}

#[test]
fn requests_follow_each_other_on_one_connection() {
    check("", 0, None);
    check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1, None);
    check("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: a\r\n\r\n", 2, None);
    check("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 2, None);
    check(
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=\"y\"\r\nabc\r\n00A\r\n0123456789\r\n0\r\nT: v\r\n\r\n\
         GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        2,
        None,
    );
}

#[test]
fn a_few_empty_lines_before_a_request_are_forgiven_and_no_more() {
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    check(&format!("{}{get}{}{get}", "\r\n".repeat(4), "\r\n".repeat(4)), 2, None);
    check(&format!("{}{get}", "\r\n".repeat(5)), 0, Some(400));
    let lines = [b"\r".to_vec(), b"\n".to_vec()].into_iter().cycle().take(10);
    let (seen, outcome, _) = serve(Script::new(lines));
    assert_eq!((seen.len(), outcome), (0, Some(400)), "one byte at a time");
    let mut sent_ahead = Connection::with_buffer(Script::whole(b""), "\r\n\r\n".into());
    assert!(!sent_ahead.has_next(), "empty lines are no request");
    assert!(run(sent_ahead.read_head(&Limits::default())).unwrap().is_none());
}

#[test]
fn a_connection_ends_when_its_client_wants_that() {
    check("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 1, None);
    check("GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\n\r\n", 1, None);
    check("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n", 2, None);
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    for (fields, body, status) in [
        ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", 400),
        ("Content-Length: 3\r\nContent-Length: 3\r\n", "abc", 400),
        ("Content-Length: 3, 3\r\n", "abc", 400),
        ("Content-Length: +3\r\n", "abc", 400),
        ("Content-Length: 0x3\r\n", "abc", 400),
        ("Content-Length: -1\r\n", "", 400),
        ("Content-Length: \r\n", "", 400),
        ("Content-Length: 99999999999999999999\r\n", "", 400),
        ("Content-Length : 3\r\n", "abc", 400),
        ("Content-Length\t: 3\r\n", "abc", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", 400),
        ("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n", 501),
        ("Transfer-Encoding: identity\r\n", "", 501),
        ("Transfer-Encoding: xchunked\r\n", "", 501),
        ("Transfer-Encoding:\u{b}chunked\r\n", "", 400),
        ("Transfer-Encoding: chunked\r\n", "3\nabc\n0\n\n", 400),
        ("Transfer-Encoding: chunked\r\n", "0x3\r\nabc\r\n0\r\n\r\n", 400),
        ("Transfer-Encoding: chunked\r\n", " 3\r\nabc\r\n0\r\n\r\n", 400),
        ("Transfer-Encoding: chunked\r\n", "3 \r\nabc\r\n0\r\n\r\n", 400),
        ("Transfer-Encoding: chunked\r\n", "-3\r\nabc\r\n0\r\n\r\n", 400),
        ("Transfer-Encoding: chunked\r\n", "\r\nabc\r\n0\r\n\r\n", 400),
        ("Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\nabc", 400),
        ("Transfer-Encoding: chunked\r\n", "ffffffffffffffff\r\nabc", 413),
        ("Transfer-Encoding: chunked\r\n", "3\r\nabcd\r\n0\r\n\r\n", 400),
        ("Transfer-Encoding: chunked\r\n", "3;\n\r\nabc\r\n0\r\n\r\n", 400),
        ("Transfer-Encoding: chunked\r\n", "0\r\nbad trailer\r\n\r\n", 400),
        ("A: b\r\n folded\r\n", "", 400),
        (" A: b\r\n", "", 400),
        ("A: b\nContent-Length: 3\r\n", "abc", 400),
        ("A: b\rContent-Length: 3\r\n", "abc", 400),
        ("A: b\0\r\n", "", 400),
        ("A b\r\n", "", 400),
        (": b\r\n", "", 400),
        ("A(: b\r\n", "", 400),
        ("Host: b\r\n", "", 400),
        ("Expect: tea\r\n", "", 417),
    ] {
        check(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}"), 0, Some(status));
    }
}

#[test]
fn a_request_line_has_one_reading() {
    for (line, status) in [
        ("GET  / HTTP/1.1", 400),
        ("GET / HTTP/1.1 ", 400),
        ("GET\t/ HTTP/1.1", 400),
        ("GET /a b HTTP/1.1", 505),
        ("GET /a#b HTTP/1.1", 400),
        ("GET /\u{e4} HTTP/1.1", 400),
        ("GET a HTTP/1.1", 400),
        ("GET * HTTP/1.1", 400),
        ("G(T / HTTP/1.1", 400),
        ("GET /", 400),
        ("GET / HTTP/2.0", 505),
        ("GET / http/1.1", 505),
        ("CONNECT a:80 HTTP/1.1", 501),
    ] {
        check(&format!("{line}\r\nHost: a\r\n\r\n"), 0, Some(status));
    }
    check("GET / HTTP/1.1\r\n\r\n", 0, Some(400));
    check("GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n", 1, None);
    check("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 1, None);
}

#[test]
fn limits_have_their_own_status() {
    check(&format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}", "x".repeat(32 << 10)), 0, Some(431));
    check(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(100)), 0, Some(431));
    check(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1), 0, Some(413));
    let chunks = format!("8000\r\n{}\r\n", "x".repeat(0x8000)).repeat(3);
    check(&format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"), 0, Some(413));
}

#[test]
fn a_request_cut_off_is_no_request() {
    for input in ["GET / HT", "\r", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab"] {
        check(input, 0, Some(0));
    }
}

fn response_text(request: &str, response: Response<Bytes>, after: After) -> (String, After, usize) {
    run(async {
        let mut connection = Connection::new(Script::whole(request.as_bytes()));
        connection.read_head(&Limits::default()).await.unwrap();
        let after = connection.write_response(response, after).await.unwrap();
        let script = connection.into_parts().0;
        (String::from_utf8(script.written).unwrap(), after, script.writes)
    })
}

#[test]
fn the_codec_frames_the_response_whatever_its_headers_say() {
    let mut response = Response::new(Bytes::from_static(b"hello"));
    for (name, value) in [("content-length", "99"), ("transfer-encoding", "chunked"), ("connection", "close"), ("x", "y")] {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let (text, after, writes) = response_text(get, response.clone(), After::KeepAlive);
    assert_eq!(text, "HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\nhello");
    assert_eq!((after, writes), (After::KeepAlive, 1));
    let (text, ..) = response_text(&get.replace("GET", "HEAD"), response.clone(), After::Close);
    assert_eq!(text, "HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 5\r\nconnection: close\r\n\r\n");
    *response.status_mut() = http::StatusCode::NO_CONTENT;
    let (text, ..) = response_text(get, response, After::KeepAlive);
    assert_eq!(text, "HTTP/1.1 204 No Content\r\nx: y\r\nconnection: keep-alive\r\n\r\n");
}

#[test]
fn a_large_response_is_one_write_too() {
    let body = Bytes::from(vec![b'x'; 1 << 20]);
    let (text, _, writes) = response_text("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Response::new(body), After::KeepAlive);
    assert!((1 << 20) < text.len());
    assert_eq!(writes, 1);
}

#[test]
fn a_held_answer_leaves_in_one_write_with_the_next() {
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n";
    let sent = |next: &str, body: &str| {
        run(async {
            let mut connection = Connection::new(Script::new([format!("{get}{next}").into(), body.into()]));
            one_read(&mut connection).await;
            assert!(connection.has_next());
            assert!(connection.hold_response(Response::new(Bytes::from_static(b"first"))).is_none());
            assert_eq!(connection.stream().writes, 0);
            one_read(&mut connection).await;
            connection.write_response(Response::new(Bytes::from_static(b"second")), After::KeepAlive).await.unwrap();
            (String::from_utf8(connection.stream().written.clone()).unwrap(), connection.stream().writes)
        })
    };
    let ok = |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: keep-alive\r\n\r\n{body}", body.len());
    assert_eq!(sent(get, ""), (ok("first") + &ok("second"), 1));
    let go_ahead = std::str::from_utf8(GO_AHEAD).unwrap();
    assert_eq!(sent(post, "x"), (ok("first") + go_ahead + &ok("second"), 2));
}

#[test]
fn half_a_head_is_no_next_request() {
    run(async {
        let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut connection = Connection::new(Script::whole(format!("{get}{}", &get[..get.len() - 2]).as_bytes()));
        one_read(&mut connection).await;
        assert!(0 < connection.buffered() && !connection.has_next());
    });
}

#[test]
fn only_an_answer_that_another_may_follow_is_held() {
    run(async {
        let mut connection = Connection::new(Script::whole(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        one_read(&mut connection).await;
        connection.hold_response(Response::new(Bytes::new())).unwrap();
        let after = connection.write_response(Response::new(Bytes::new()), After::KeepAlive).await.unwrap();
        assert_eq!(after, After::Close);

        let mut connection = Connection::new(Script::whole(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
        one_read(&mut connection).await;
        connection.hold_response(Response::new(Bytes::from(vec![b'x'; JOINED_BYTES + 1]))).unwrap();
    });
}

/// Reads one request whole.
async fn one_read(connection: &mut Connection<Script>) {
    let parts = connection.read_head(&Limits::default()).await.unwrap().unwrap();
    connection.read_body(&parts, 100).await.unwrap();
}

#[test]
fn an_unread_body_closes_the_connection() {
    let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n";
    let (text, after, _) = response_text(request, Response::new(Bytes::new()), After::KeepAlive);
    assert!(text.contains("connection: close"), "{text}");
    assert_eq!(after, After::Close);
}

#[test]
fn a_go_ahead_is_sent_only_to_who_waits_for_it() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
    let (_, _, waiting) = serve(Script::new([head.into(), b"abc".to_vec()]));
    assert!(waiting.written.starts_with(GO_AHEAD));
    let (seen, _, eager) = serve(Script::whole(format!("{head}abc").as_bytes()));
    assert!(!eager.written.starts_with(GO_AHEAD) && seen.len() == 1);
}

#[test]
fn a_connection_moves_before_or_after_its_head_was_read() {
    let input = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: a\r\n\r\n";
    run(async {
        let mut first = Connection::new(Script::whole(input));
        let parts = first.read_head(&Limits::default()).await.unwrap().unwrap();
        assert!(first.unread_head());
        assert!(!first.unread_head(), "only once");
        let (stream, buffer) = first.into_parts();
        assert_eq!(buffer[..], input[..]);

        let mut second = Connection::with_buffer(stream, buffer);
        assert_eq!(second.read_head(&Limits::default()).await.unwrap().unwrap().uri, parts.uri);
        let (stream, buffer) = second.into_parts();

        let mut third = Connection::with_request(stream, buffer, &parts).unwrap();
        assert_eq!(third.read_body(&parts, 3).await.unwrap(), "abc");
        assert!(!third.unread_head(), "the body was read");
        let after = third.write_response(Response::new(Bytes::new()), After::KeepAlive).await.unwrap();
        assert_eq!(after, After::KeepAlive);
        assert_eq!(third.read_head(&Limits::default()).await.unwrap().unwrap().uri, "/b");
    });
}

#[test]
fn a_large_body_leaves_no_large_buffer() {
    let big = vec![b'x'; 1 << 16];
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", big.len());
    run(async {
        let mut connection = Connection::new(Script::whole(&[head.as_bytes(), &big].concat()));
        one(&mut connection).await.unwrap().unwrap();
        connection.input.reserve(1);
        assert!(connection.input.capacity() <= KEPT_BYTES, "{}", connection.input.capacity());
    });
}

#[test]
fn a_body_comes_in_bounded_pieces_or_is_thrown_away() {
    let body = vec![b'x'; 200_000];
    let input = [format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat();
    run(async {
        let mut connection = Connection::new(Script::whole(&input));
        let parts = connection.read_head(&Limits::default()).await.unwrap().unwrap();
        let mut sum = 0;
        while let Some(piece) = connection.read_piece(&parts).await.unwrap() {
            assert!((1..=MAX_READ_BYTES).contains(&piece.len()));
            sum += piece.len();
        }
        assert_eq!(sum, body.len());

        let mut connection = Connection::new(Script::whole(&input));
        let parts = connection.read_head(&Limits::default()).await.unwrap().unwrap();
        assert!(matches!(connection.read_body(&parts, 1000).await, Err(Error::BodyTooLong { limit: 1000 })));
        connection.discard_body(&parts, 1 << 20).await.unwrap();
        let after = connection.write_response(Response::new(Bytes::new()), After::KeepAlive).await.unwrap();
        assert_eq!(after, After::KeepAlive);
    });
}

#[test]
fn a_client_that_leaves_is_noticed_while_its_response_is_pending() {
    run(async {
        let (client, server) = tokio::io::duplex(1024);
        let mut client: DuplexStream = client;
        let mut connection = Connection::new(server);
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /ahead").await.unwrap();
        connection.read_head(&Limits::default()).await.unwrap().unwrap();
        tokio::select! {
            biased;
            () = connection.closed() => panic!("the client is still there"),
            () = tokio::task::yield_now() => {}
        }
        assert_eq!(connection.buffered(), b"GET /ahead".len());
        drop(client);
        connection.closed().await;
    });
}

fn a_request() -> impl Strategy<Value = Vec<u8>> {
    let body = prop::collection::vec(any::<u8>(), 0..300);
    let fields = prop::collection::vec(("[a-zA-Z][a-zA-Z0-9-]{0,12}", "[!-~]{0,20}"), 0..5);
    ("/[a-z0-9/%?=]{0,20}", fields, body, 0_usize..50).prop_map(|(target, fields, body, chunk)| {
        let mut text = format!("POST {target} HTTP/1.1\r\nhost: a\r\n");
        for (name, value) in fields {
            text.push_str(&format!("x-{name}: {value}\r\n"));
        }
        let mut bytes = if chunk == 0 {
            format!("{text}content-length: {}\r\n\r\n", body.len()).into_bytes()
        } else {
            format!("{text}transfer-encoding: chunked\r\n\r\n").into_bytes()
        };
        if chunk == 0 {
            bytes.extend_from_slice(&body);
        } else {
            for piece in body.chunks(chunk) {
                bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                bytes.extend_from_slice(piece);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\nt: v\r\n\r\n");
        }
        bytes
    })
}

/// Cuts bytes into pieces of the given lengths, over and over.
fn cut(bytes: &[u8], lengths: &[usize]) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at(rest.len().min(*length));
        pieces.push(piece.to_vec());
        rest = after;
    }
    pieces
}

fn soup() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        "GET ",
        "/ ",
        "HTTP/1.1",
        "\r\n",
        "\r",
        "\n",
        "Host: a\r\n",
        "Content-Length: ",
        "Transfer-Encoding: chunked\r\n",
        "0",
        "5",
        "\r\n\r\n",
        ":",
        " ",
        "ff",
        ";",
        "Expect: 100-continue\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\n",
    ]);
    let piece = prop_oneof![word.prop_map(|word| word.as_bytes().to_vec()), prop::collection::vec(any::<u8>(), 0..6)];
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn the_same_bytes_mean_the_same_however_they_are_cut(
        requests in prop::collection::vec(a_request(), 1..4),
        lengths in prop::collection::vec(1_usize..40, 1..8),
    ) {
        let bytes = requests.concat();
        let (whole, end, _) = serve(Script::whole(&bytes));
        let (pieces, pieces_end, _) = serve(Script::new(cut(&bytes, &lengths)));
        prop_assert_eq!((whole.len(), end), (requests.len(), None));
        prop_assert_eq!((pieces, pieces_end), (whole, end));
    }

    #[test]
    fn no_bytes_make_it_panic_and_cuts_change_nothing(bytes in soup(), lengths in prop::collection::vec(1_usize..9, 1..5)) {
        let (whole, end, _) = serve(Script::whole(&bytes));
        let (pieces, pieces_end, _) = serve(Script::new(cut(&bytes, &lengths)));
        prop_assert_eq!(pieces, whole);
        prop_assert_eq!(pieces_end.is_some(), end.is_some());
    }

    #[test]
    fn a_look_ahead_finds_what_the_connection_reads(bytes in soup(), lengths in prop::collection::vec(1_usize..9, 1..5)) {
        let limits = Limits::default();
        let (mut seen, mut found) = (0, Ok(None));
        let mut came = Vec::new();
        for piece in cut(&bytes, &lengths) {
            came.extend(piece);
            found = peek(&came, seen, &limits);
            seen = came.len();
            if !matches!(found, Ok(None)) {
                break;
            }
        }
        let mut connection = Connection::new(Script::whole(&bytes));
        match (found, run(connection.read_head(&limits))) {
            (Ok(Some(peeked)), Ok(Some(parts))) => {
                prop_assert_eq!((&peeked.parts.uri, &peeked.parts.headers), (&parts.uri, &parts.headers));
                prop_assert_eq!(bytes.len() - peeked.head, connection.buffered());
            }
            (Ok(None), Ok(None) | Err(Error::Truncated)) | (Err(_), Err(_)) => {}
            (found, read) => prop_assert!(false, "{found:?} {read:?}"),
        }
    }

    #[test]
    fn whatever_never_ends_a_head_is_refused_with_bounded_memory(
        lines in 0..6_usize,
        word in "[a-z \r\n]{1,9}",
        lengths in prop::collection::vec(1_usize..200_000, 1..5),
    ) {
        let limits = Limits { head_bytes: 8 << 10, headers: 10 };
        let bytes = ["\r\n".repeat(lines), word.repeat((1 << 20) / word.len())].concat();
        let mut connection = Connection::new(Script::new(cut(bytes.as_bytes(), &lengths)));
        prop_assert!(run(connection.read_head(&limits)).is_err());
        let most = 2 * (limits.head_bytes + KEPT_BYTES);
        prop_assert!(connection.input.capacity() <= most, "{}", connection.input.capacity());
    }

    #[test]
    fn hyper_reads_the_responses(
        status in 200_u16..599,
        fields in prop::collection::vec(("x-[a-z]{1,10}", "[!-~]{0,20}"), 0..5),
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40_000), 1..3),
    ) {
        let response = |body: &[u8]| {
            let mut response = Response::new(Bytes::copy_from_slice(body));
            *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
            for (name, value) in &fields {
                response.headers_mut().insert(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
            }
            response
        };
        run(async {
            let (client, server) = tokio::io::duplex(1 << 14);
            let serving = async {
                let mut connection = Connection::new(server);
                for body in &bodies {
                    let parts = connection.read_head(&Limits::default()).await.unwrap().unwrap();
                    assert_eq!(connection.read_body(&parts, MAX_BODY).await.unwrap(), body);
                    connection.write_response(response(body), After::KeepAlive).await.unwrap();
                }
            };
            let asking = async {
                let (mut sender, wire) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
                let calls = async {
                    for body in &bodies {
                        let request = http::Request::post("/").header("host", "a").body(Full::new(Bytes::copy_from_slice(body)));
                        let answer = sender.send_request(request.unwrap()).await.unwrap();
                        assert_eq!(answer.status().as_u16(), status);
                        for (name, value) in response(body).headers() {
                            assert_eq!(answer.headers().get(name), Some(value));
                        }
                        let expected: &[u8] = if status == 204 || status == 304 { b"" } else { body };
                        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), expected);
                    }
                    drop(sender);
                };
                tokio::join!(async { wire.await.unwrap() }, calls);
            };
            tokio::join!(serving, asking);
        });
    }
}
