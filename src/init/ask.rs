//! The questions, for whoever sits at a terminal. An empty line takes what stands in brackets.

use std::io::{BufRead, Write};

use super::InitError;
use crate::config::InitArgs;
use crate::conninfo::Environment;
use crate::error::RelayError;

/// Asks for what no flag has said, and whether to go on.
pub(super) fn complete(
    args: &mut InitArgs,
    environment: &Environment,
    input: &mut dyn BufRead,
    output: &mut dyn Write,
) -> Result<(), RelayError> {
    let mut asker = Asker { input, output };
    asker.upstream(args, environment)?;
    if args.data_dir.is_none() {
        let default = args.default_data_dir()?.display().to_string();
        args.data_dir = Some(asker.ask("Directory for WAL", &default)?.into());
    }
    if args.listen.is_empty() {
        args.listen = list(&asker.ask("Where to serve consumers, e.g. 0.0.0.0:5432", "127.0.0.1:5432")?);
    }
    if args.consumer_role.is_empty() {
        args.consumer_role = list(&asker.ask("Roles of consumers, e.g. standby", "")?);
    }
    if args.archive.is_empty() {
        args.archive = list(&asker.ask("Archive, e.g. file:///srv/wal or s3://bucket/prefix", "")?);
    }
    let question = format!("Write \"{}\"?", args.config.display());
    match asker.ask(&question, "yes")?.to_lowercase().starts_with('y') {
        true => Ok(()),
        false => Err(InitError::Declined.into()),
    }
}

struct Asker<'a> {
    input: &'a mut dyn BufRead,
    output: &'a mut dyn Write,
}

impl Asker<'_> {
    /// Until it can be used.
    fn upstream(&mut self, args: &mut InitArgs, environment: &Environment) -> Result<(), InitError> {
        while args.upstream.is_none() {
            let text = self.ask("Server to receive WAL from, e.g. host=primary user=walrelay", "")?;
            args.upstream = Some(text);
            if let Err(error) = args.upstream(environment) {
                let _ = writeln!(self.output, "{error}");
                args.upstream = None;
            }
        }
        Ok(())
    }

    fn ask(&mut self, question: &str, default: &str) -> Result<String, InitError> {
        let shown = if default.is_empty() { String::new() } else { format!(" [{default}]") };
        let _ = write!(self.output, "{question}{shown}: ").and_then(|()| self.output.flush());
        let mut line = String::new();
        match self.input.read_line(&mut line) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Err(InitError::Unanswered),
        }
        let answer = line.trim();
        Ok(if answer.is_empty() { default } else { answer }.to_owned())
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(args: &mut InitArgs, answers: &str) -> (Result<(), String>, String) {
        let mut said = Vec::new();
        let environment = Environment::of_user("tester");
        let result = complete(args, &environment, &mut answers.as_bytes(), &mut said);
        (result.map_err(|error| error.to_string()), String::from_utf8(said).unwrap())
    }

    #[test]
    fn what_no_flag_has_said_is_asked() {
        let mut args = InitArgs { data_dir: Some("/d".into()), ..InitArgs::default() };
        let (result, said) = asked(
            &mut args,
            "nosuch=1\nhost=h password=x\nhost=h user=u\n0.0.0.0:5432, /run/walrelay\na,b\n\n\n",
        );
        assert_eq!(result, Ok(()));
        assert!(said.contains("nosuch") && said.contains("holds a password"), "{said}");
        assert!(!said.contains("Directory"), "it was given");
        assert_eq!(args.upstream.as_deref(), Some("host=h user=u"));
        assert_eq!(args.listen, ["0.0.0.0:5432", "/run/walrelay"]);
        assert_eq!((args.consumer_role, args.archive), (vec!["a".to_owned(), "b".to_owned()], vec![]));
    }

    #[test]
    fn nothing_is_decided_for_who_says_no_or_nothing() {
        let mut args = InitArgs { data_dir: Some("/d".into()), ..InitArgs::default() };
        let (result, _) = asked(&mut args, "host=h user=u\n\n\n\nno\n");
        assert_eq!(result.unwrap_err(), "nothing was written");
        let (result, _) = asked(&mut InitArgs::default(), "host=h user=u\n");
        assert!(result.unwrap_err().contains("standard input has ended"));
    }
}
