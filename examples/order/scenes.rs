//! Three scenes, for a reader: an order that gets through, one that is interrupted, and one that is refused.

use oncekey::Store;

use crate::order::Order;
use crate::world::World;
use crate::{fulfil, resume_unfinished};

pub(crate) fn play() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("orders.once");
    let world = World::open(directory.path())?;
    let order = |id: &str, items: &[&str]| Order {
        id: id.to_owned(),
        cents: 1_000,
        items: items.iter().map(|item| (*item).to_owned()).collect(),
    };
    let store = Store::open(&path)?;
    let take = |order: &Order| fulfil(store.operation(&order.id).scope("orders").input(order), order, &world);

    println!("An order of two items:");
    println!("  {}", take(&order("order-1", &["lamp", "desk"]))?);

    println!("The answer to a charge is lost, and the process ends:");
    world.loses_answer_of.set(Some("charge"));
    if let Err(error) = take(&order("order-2", &["chair"])) {
        println!("  {error}");
    }
    drop(store);
    println!("The next process finds the order in its store, and the charge at the bank:");
    let store = Store::open(&path)?;
    resume_unfinished(&store, &world)?;

    println!("An order that the carrier refuses for good:");
    let piano = order("order-3", &["piano"]);
    println!("  {}", fulfil(store.operation(&piano.id).scope("orders").input(&piano), &piano, &world)?);
    Ok(store.close()?)
}
