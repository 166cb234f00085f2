//! Programs of other engines, which answer each request line with the seconds that it took.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::Failure;
use crate::shapes::Shape;

/// A program that has loaded its model and waits.
pub(crate) struct Worker {
    pub(crate) engine: String,
    process: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts a command, given the shape as its last argument, and waits for its first line.
    pub(crate) fn start(command: &str, shape: &Shape) -> Result<Self, Failure> {
        let mut words = command.split_whitespace();
        let program = words.next().ok_or("no command")?;
        let mut process = Command::new(program)
            .args(words)
            .arg(serde_json::to_string(shape)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?;
        let requests = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().ok_or("no output")?);
        let mut worker = Self {
            engine: String::new(),
            process,
            requests,
            answers,
        };
        let hello = worker.read()?;
        worker.engine = hello["engine"].as_str().unwrap_or(command).to_owned();
        Ok(worker)
    }

    fn read(&mut self) -> Result<Value, Failure> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(format!("it stopped, {}", self.process.wait()?).into());
        }
        let answer: Value = serde_json::from_str(&line)?;
        match answer["error"].as_str() {
            Some(error) => Err(error.into()),
            None => Ok(answer),
        }
    }

    /// The seconds of one run, and in which setting.
    pub(crate) fn measure(&mut self, case: &str, flows: usize) -> Result<(f64, String), Failure> {
        let requests = self.requests.as_mut().ok_or("no input")?;
        writeln!(requests, "{}", json!({"case": case, "flows": flows}))?;
        requests.flush()?;
        let answer = self.read()?;
        let seconds = answer["seconds"]
            .as_f64()
            .ok_or("an answer without seconds")?;
        Ok((
            seconds,
            answer["setting"].as_str().unwrap_or_default().to_owned(),
        ))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The end of its input ends it.
        self.requests = None;
        let _status = self.process.wait();
    }
}
