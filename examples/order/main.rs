//! An order of several side effects: reserve the stock, charge, ship, mail. Killed at any moment and run again, it does none of
//! them twice and goes on where it stopped.
//!
//! Without an argument it plays three scenes. With a directory, it fulfils the file `orders` in it.

mod order;
mod scenes;
mod world;

use std::path::Path;

use oncekey::{Operation, RunError, Store};

use order::{Charge, Failure, Fulfilled, Order, Shipment};
use world::World;

/// Fulfils an order. The closure is the plan of the whole job, and can be run any number of times: a step that is done returns
/// its recorded result. What can be undone comes first, and what cannot be undone last.
fn fulfil(
    operation: Operation<'_>,
    order: &Order,
    world: &World,
) -> Result<Fulfilled, RunError<Fulfilled, Failure>> {
    let outcome = operation.rerun().run(|job| -> Result<Fulfilled, Failure> {
        for item in &order.items {
            // The stock takes idempotency keys, so its calls can be repeated.
            job.step(format!("reserve:{item}"))
                .request(item)
                .rerun()
                .run(|step| world.reserve(&step.token(), item))?;
        }
        let charge: Charge = job
            .step("charge")
            .request(&order.cents)
            .reconcile(|step| world.find_charge(&step.token())) // the bank takes none, but knows what it did
            .run(|step| world.charge(&step.token(), order.cents))?;
        let shipment = job
            .step("ship")
            .reconcile(|step| world.find_shipment(&step.token()))
            .run(|step| world.ship(&step.token(), order))?;
        if let Shipment::Refused(_) = &shipment {
            // Refused for good: undo what was done, by steps of its own, so that they survive a crash as well.
            job.step("refund")
                .reconcile(|step| world.find_refund(&step.token()))
                .run(|step| world.refund(&step.token(), &charge))?;
            for item in &order.items {
                job.step(format!("put-back:{item}"))
                    .request(item)
                    .rerun()
                    .run(|step| world.put_back(&step.token(), item))?;
            }
        }
        job.step("mail").rerun().run(|step| world.mail(&step.token(), &shipment))?;
        Ok(Fulfilled { charge, shipment })
    })?;
    Ok(outcome.into_inner())
}

/// Takes up what an earlier process began and did not finish. It needs the store only: the order is the operation's input.
fn resume_unfinished(store: &Store, world: &World) -> Result<(), Box<dyn std::error::Error>> {
    for operation in store.unfinished()? {
        let operation = operation?;
        let Some((order, resumed)) = store.resume::<Order>(operation.key())? else { continue };
        println!("  resuming {}: {} steps, {}", order.id, operation.steps().len(), operation.status());
        println!("  {}", fulfil(resumed, &order, world)?);
    }
    Ok(())
}

/// Fulfils the orders of a directory, after those that an earlier process left unfinished.
fn work(directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let store = Store::open(directory.join("orders.once"))?;
    let world = World::open(directory)?;
    resume_unfinished(&store, &world)?;
    for order in order::read(directory)? {
        println!("{}:", order.id);
        println!("  {}", fulfil(store.operation(&order.id).scope("orders").input(&order), &order, &world)?);
    }
    Ok(store.close()?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match std::env::args_os().nth(1) {
        Some(directory) => work(Path::new(&directory)),
        None => scenes::play(),
    }
}
