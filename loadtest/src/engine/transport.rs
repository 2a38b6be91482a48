//! A non-blocking connection, plain or TLS, read from and written to with buffers of the thread's.
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
};

/// A TCP connection with rustls on top, or without.
#[derive(Debug)]
pub struct Transport {
    pub tcp: TcpStream,
    tls: Option<Box<rustls::Connection>>,
}

impl Transport {
    pub fn plain(tcp: TcpStream) -> Self {
        Self { tcp, tls: None }
    }

    pub fn tls(tcp: TcpStream, tls: impl Into<rustls::Connection>) -> Self {
        Self { tcp, tls: Some(Box::new(tls.into())) }
    }

    /// Whether every byte that `recv` left must be in the socket, so that a short read means that it is empty.
    pub fn is_plain(&self) -> bool {
        self.tls.is_none()
    }

    /// Drives the TLS handshake. `Ok(true)` when it is done, or was never needed.
    ///
    /// # Errors
    /// The handshake failed, or the peer went away.
    pub fn handshake(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(true) };
        while tls.is_handshaking() {
            while tls.wants_write() {
                match tls.write_tls(&mut self.tcp) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            if !tls.is_handshaking() {
                break;
            }
            match tls.read_tls(&mut self.tcp) {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "closed in the TLS handshake")),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
            if let Err(error) = tls.process_new_packets() {
                let _ = tls.write_tls(&mut self.tcp); // the alert
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        }
        Ok(true)
    }

    /// Receives; 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing; else the connection is lost.
    pub fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.tcp.read(buffer) };
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Without close_notify the frames tell whether the end is one.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                done => return done,
            }
            tls.read_tls(&mut self.tcp)?;
            tls.process_new_packets().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }

    /// Sends as much as fits.
    ///
    /// # Errors
    /// `WouldBlock` when nothing fits; else the connection is lost.
    pub fn send(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.tls.is_none() {
            return self.tcp.write(data);
        }
        self.flush()?;
        let Some(tls) = &mut self.tls else { return Ok(0) };
        let accepted = tls.writer().write(data)?;
        match self.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(accepted),
        }
    }

    /// Sends what TLS holds back.
    ///
    /// # Errors
    /// `WouldBlock` when it does not fit; else the connection is lost.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut self.tcp)?;
            }
        }
        Ok(())
    }

    /// Says that nothing more will be sent.
    pub fn end_write(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = self.flush();
        }
        let _ = self.tcp.shutdown(Shutdown::Write);
    }
}
