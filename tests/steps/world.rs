//! The outside world of the tests: it counts what was done, and is where a job crashes.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;

use oncekey::{Outcome, RunError, Store};

use crate::common::{Place, copy_while_open};

/// The payload of the panic that stands for a crash.
pub(crate) struct Crash;

#[derive(Default)]
pub(crate) struct World {
    acts: RefCell<Vec<String>>,
    /// The number of points that were passed.
    points: Cell<u32>,
    /// The point at which the process crashes, and the file of its store.
    crash: RefCell<Option<(u32, PathBuf)>>,
    /// The file as the crash left it.
    left: RefCell<Option<Place>>,
}

impl World {
    /// Lets the process crash at this point, counted from 1.
    pub(crate) fn crash_at(&self, point: u32, file: PathBuf) {
        self.points.set(0);
        *self.crash.borrow_mut() = Some((point, file));
    }

    /// Takes the file as the crash left it.
    pub(crate) fn left(&self) -> Option<Place> {
        self.crash.borrow_mut().take();
        self.left.borrow_mut().take()
    }

    pub(crate) fn point(&self) {
        self.points.set(self.points.get() + 1);
        let file = self
            .crash
            .borrow()
            .as_ref()
            .filter(|(at, _)| *at == self.points.get())
            .map(|(_, file)| file.clone());
        if let Some(file) = file {
            *self.left.borrow_mut() = Some(copy_while_open(&file));
            std::panic::resume_unwind(Box::new(Crash));
        }
    }

    /// A side effect, which happens again whenever it is called.
    pub(crate) fn act(&self, token: String) -> Result<usize, String> {
        self.point();
        self.acts.borrow_mut().push(token);
        self.point();
        Ok(self.acts.borrow().len())
    }

    pub(crate) fn find(&self, token: &str) -> Option<usize> {
        self.acts.borrow().iter().position(|act| act == token).map(|at| at + 1)
    }

    pub(crate) fn acts(&self) -> Vec<String> {
        self.acts.borrow().clone()
    }
}

pub(crate) const ITEMS: [&str; 2] = ["lamp", "desk"];

/// A job of four steps, each with its own rule for doubt. It passes a point before and after each side effect, and between
/// two steps.
pub(crate) fn fulfil(
    store: &Store,
    world: &World,
) -> Result<Outcome<Vec<usize>>, RunError<Vec<usize>, String>> {
    let text = |error: RunError<usize, String>| error.to_string();
    store.operation("order").scope("orders").request(&ITEMS).rerun().run(|job| {
        let mut numbers = Vec::new();
        for item in ITEMS {
            let step = job.step(format!("reserve:{item}")).request(item);
            let step = step.reconcile(|step| world.find(&step.token()));
            numbers.push(step.run(|step| world.act(step.token())).map_err(text)?);
            world.point();
        }
        for name in ["charge", "ship"] {
            let step = job.step(name).reconcile(|step| Ok::<_, String>(world.find(&step.token())));
            numbers.push(step.run(|step| world.act(step.token())).map_err(text)?);
            world.point();
        }
        Ok(numbers)
    })
}

/// The side effects of the job, in order.
pub(crate) const ACTS: [&str; 4] =
    ["orders/order#reserve:lamp", "orders/order#reserve:desk", "orders/order#charge", "orders/order#ship"];
