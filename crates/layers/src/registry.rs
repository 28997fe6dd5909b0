//! Which layers there are, and who uses them: a layer is made once, then only read, and dropped when nobody reads it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use firebuild_protocol::{ErrorCode, TaskError};

/// Whether a layer's directory is on the work disk or is a disk of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Work,
    Disk,
}

#[derive(Debug)]
struct Record {
    /// Part of its paths: short, for overlayfs's options must fit a page.
    number: u32,
    origin: Origin,
    /// Being made, or being dropped: for nobody else.
    exclusive: bool,
    readers: u32,
    /// The stack that it was made on, topmost first; None if that is not known (an archive by itself).
    stack: Option<Vec<String>>,
}

#[derive(Debug, Default)]
struct State {
    layers: BTreeMap<String, Record>,
    next_number: u32,
}

/// All layers of a build machine.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    state: Arc<Mutex<State>>,
}

/// One layer as its users see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerPlace {
    pub number: u32,
    pub origin: Origin,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that died left whole records: none is changed in two steps.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves a new name. The layer vanishes again unless [`NewLayer::keep`] is called.
    pub fn create(&self, name: &str, origin: Origin, stack: Option<&[String]>) -> Result<NewLayer, TaskError> {
        let mut state = self.lock();
        if state.layers.contains_key(name) {
            return Err(TaskError::new(ErrorCode::Exists, format!("layer {name} exists already")));
        }
        let number = state.next_number;
        state.next_number += 1;
        let record = Record { number, origin, exclusive: true, readers: 0, stack: stack.map(<[String]>::to_vec) };
        state.layers.insert(name.to_owned(), record);
        Ok(NewLayer {
            registry: self.clone(),
            name: name.to_owned(),
            place: LayerPlace { number, origin },
            done: false,
        })
    }

    /// Marks all layers of a stack as read, or none of them.
    pub fn read(&self, stack: &[String]) -> Result<Reading, TaskError> {
        let mut state = self.lock();
        let mut places = Vec::with_capacity(stack.len());
        for name in stack {
            let record = find(&mut state, name)?;
            if record.exclusive {
                return Err(TaskError::new(ErrorCode::Busy, format!("layer {name} is being made or dropped")));
            }
            places.push(LayerPlace { number: record.number, origin: record.origin });
        }
        for name in stack {
            find(&mut state, name)?.readers += 1;
        }
        Ok(Reading { registry: self.clone(), names: stack.to_vec(), places })
    }

    /// The stack that a layer was made on, if that is known and all of it is still there.
    pub fn read_lower(&self, name: &str) -> Result<Option<Reading>, TaskError> {
        let stack = find(&mut self.lock(), name)?.stack.clone();
        Ok(stack.and_then(|stack| self.read(&stack).ok()))
    }

    /// Takes a layer for dropping it: refused while anyone reads it.
    pub fn take(&self, name: &str) -> Result<NewLayer, TaskError> {
        let mut state = self.lock();
        let record = find(&mut state, name)?;
        if record.exclusive || record.readers > 0 {
            return Err(TaskError::new(ErrorCode::Busy, format!("layer {name} is in use")));
        }
        record.exclusive = true;
        let place = LayerPlace { number: record.number, origin: record.origin };
        Ok(NewLayer { registry: self.clone(), name: name.to_owned(), place, done: false })
    }

    /// A number for a folder or mount point of its own.
    pub fn number(&self) -> u32 {
        let mut state = self.lock();
        let number = state.next_number;
        state.next_number += 1;
        number
    }
}

fn find<'a>(state: &'a mut State, name: &str) -> Result<&'a mut Record, TaskError> {
    state.layers.get_mut(name).ok_or_else(|| TaskError::new(ErrorCode::NotFound, format!("no layer {name}")))
}

/// A layer that only its holder may touch. Forgotten when dropped without [`NewLayer::keep`].
#[derive(Debug)]
pub struct NewLayer {
    registry: Registry,
    name: String,
    pub place: LayerPlace,
    done: bool,
}

impl NewLayer {
    /// From here on others may read it.
    pub fn keep(mut self) {
        if let Some(record) = self.registry.lock().layers.get_mut(&self.name) {
            record.exclusive = false;
        }
        self.done = true;
    }
}

impl Drop for NewLayer {
    fn drop(&mut self) {
        if !self.done {
            self.registry.lock().layers.remove(&self.name);
        }
    }
}

/// Layers that stay while this is held.
#[derive(Debug)]
pub struct Reading {
    registry: Registry,
    names: Vec<String>,
    /// Topmost first.
    pub places: Vec<LayerPlace>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        for name in &self.names {
            if let Some(record) = state.layers.get_mut(name) {
                record.readers = record.readers.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Origin, Registry};

    fn stack(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_layer_is_exclusive_until_it_is_kept_and_stays_while_it_is_read() {
        let registry = Registry::default();
        let new = registry.create("a", Origin::Work, None).expect("new");
        assert!(registry.create("a", Origin::Work, None).is_err());
        assert!(registry.read(&stack(&["a"])).is_err());
        new.keep();
        let reading = registry.read(&stack(&["a"])).expect("readable");
        assert!(registry.take("a").is_err());
        drop(reading);
        drop(registry.take("a").expect("free"));
        assert!(registry.read(&stack(&["a"])).is_err());
    }

    #[test]
    fn a_stack_with_a_missing_layer_marks_nothing() {
        let registry = Registry::default();
        registry.create("a", Origin::Work, None).expect("new").keep();
        assert!(registry.read(&stack(&["a", "b"])).is_err());
        registry.take("a").expect("nobody reads it");
    }

    #[test]
    fn a_layer_that_fails_is_forgotten() {
        let registry = Registry::default();
        drop(registry.create("a", Origin::Work, None).expect("new"));
        registry.create("a", Origin::Work, None).expect("again").keep();
    }
}
