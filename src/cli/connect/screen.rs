//! What the user sees: messages and what happens, on a terminal or in a pipe.
use std::{
    cell::{Cell, RefCell},
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

/// A message of the target.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    Text(String),
    Binary(Vec<u8>),
}

/// Bytes of a binary message that a terminal shows.
const SHOWN_BYTES: usize = 4096;
const BYTES_A_LINE: usize = 16;

const BLUE: u8 = 34;
const GREEN: u8 = 32;
const RED: u8 = 31;

pub struct Screen {
    terminal: bool,
    colours: bool,
    /// Standard output is a terminal, though perhaps standard input is not.
    shown: bool,
    /// While a line is edited, only its editor may write.
    printer: RefCell<Option<Box<dyn rustyline::ExternalPrinter>>>,
    /// The reader of standard output is gone.
    unread: Cell<bool>,
}

impl Screen {
    pub fn new(terminal: bool, colours: bool) -> Self {
        let shown = io::stdout().is_terminal();
        Self { terminal, colours, shown, printer: RefCell::default(), unread: Cell::new(false) }
    }

    /// From now on through the editor, or no more.
    pub fn set_printer(&self, printer: Option<Box<dyn rustyline::ExternalPrinter>>) {
        *self.printer.borrow_mut() = printer;
    }

    /// Whether messages still have a reader.
    pub fn is_read(&self) -> bool {
        !self.unread.get()
    }

    /// A message of the target.
    ///
    /// # Errors
    /// It could not be written. That nobody reads it any more is no error: see [`Screen::is_read`].
    pub fn message(&self, message: &Message) -> io::Result<()> {
        if self.unread.get() {
            return Ok(());
        }
        let written = match message {
            Message::Text(text) if self.terminal => self.print(BLUE, "< ", &harmless(text)),
            Message::Text(text) => self.write(&[text.as_bytes(), b"\n"]),
            Message::Binary(bytes) if self.terminal => self.print(BLUE, "< ", &dump(bytes)),
            Message::Binary(bytes) if self.shown => self.write(&[dump(bytes).as_bytes(), b"\n"]),
            Message::Binary(bytes) => self.write(&[bytes]),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.unread.set(true);
                Ok(())
            }
            other => other,
        }
    }

    /// Something that happened.
    pub fn status(&self, text: &str) {
        self.say(GREEN, text);
    }

    /// Something that went wrong.
    pub fn error(&self, text: &str) {
        self.say(RED, text);
    }

    fn say(&self, colour: u8, text: &str) {
        if self.terminal {
            let _ = self.print(colour, "", text);
        } else {
            let _ = writeln!(io::stderr(), "ringway: {text}");
        }
    }

    fn print(&self, colour: u8, sign: &str, text: &str) -> io::Result<()> {
        let line =
            if self.colours { format!("\x1b[{colour}m{sign}{text}\x1b[0m\n") } else { format!("{sign}{text}\n") };
        if let Some(printer) = &mut *self.printer.borrow_mut()
            && printer.print(line.clone()).is_ok()
        {
            return Ok(());
        }
        self.write(&[line.as_bytes()])
    }

    /// Prints as it is, if there is an editor.
    pub fn print_through_editor(&self, text: &str) {
        if let Some(printer) = &mut *self.printer.borrow_mut() {
            let _ = printer.print(text.to_owned());
        }
    }

    fn write(&self, parts: &[&[u8]]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        parts.iter().try_for_each(|part| stdout.write_all(part))?;
        stdout.flush()
    }
}

/// Text that cannot steer a terminal: control characters other than tab and line end are shown as escapes.
pub fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' | '\n' => out.push(c),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// Bytes as a hex dump, the first line of which may stand behind a sign.
fn dump(bytes: &[u8]) -> String {
    let mut out = match bytes.len() {
        1 => "binary, 1 byte".to_owned(),
        len => format!("binary, {len} bytes"),
    };
    for (number, line) in bytes[..bytes.len().min(SHOWN_BYTES)].chunks(BYTES_A_LINE).enumerate() {
        let _ = write!(out, "\n  {:08x} ", number * BYTES_A_LINE);
        for at in 0..BYTES_A_LINE {
            let _ = match line.get(at) {
                Some(byte) => write!(out, " {byte:02x}"),
                None => write!(out, "   "),
            };
        }
        let text =
            line.iter().map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' });
        let _ = write!(out, "  {}", text.collect::<String>());
    }
    if bytes.len() > SHOWN_BYTES {
        let _ = write!(out, "\n  and {} more", bytes.len() - SHOWN_BYTES);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_steer_a_terminal() {
        assert_eq!(harmless("a\tb\nc ü"), "a\tb\nc ü");
        assert_eq!(harmless("\x1b[2J\r\0\u{9b}"), "\\u{1b}[2J\\r\\u{0}\\u{9b}");
    }

    #[test]
    fn dumps() {
        assert_eq!(dump(b""), "binary, 0 bytes");
        let hex = "00 41 20 ff".to_owned() + &" ".repeat(12 * 3);
        assert_eq!(dump(b"\0A \xff"), format!("binary, 4 bytes\n  00000000  {hex}  .A ."));
        let long = dump(&[b'x'; SHOWN_BYTES + 1]);
        assert!(long.ends_with("\n  and 1 more") && long.lines().count() == 2 + SHOWN_BYTES / BYTES_A_LINE, "{long}");
    }
}
