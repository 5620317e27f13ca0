// Meters: a tree of records and budgets. A charge goes to a meter and all its parents at once or, when one of them
// refuses, to none; so do reservations and settlements. A meter keeps its parent alive, so any order of freeing is
// legal. One lock for each meter, always taken from child to parent, makes a read a consistent moment: cached tokens
// never exceed input in it, and what a parent reads is never less than its children read before it.

import Synchronization
package import TamisRuntime

package final class Meter: Sendable {
  package let label: String
  package let parent: Meter?
  /// Estimates the dense counterfactual's time of what is charged here: its own, or its parent's.
  package let machine: MachineProfile?
  /// While a thread is inside, the processor's energy is read.
  package let readsEnergy: Bool
  private let depth: Int
  private let state: Guarded<State>

  /// Levels below a root; a charge walks them all.
  package static let deepest = 32
  /// Reservations a meter holds at a time.
  package static let mostReservations = 1 << 16
  package static let longestLabel = 256

  /// Counts over all meters, so that no meter takes another's reservation for its own.
  private static let reservations = Atomic<UInt64>(0)

  private struct State: Sendable {
    var cost = Cost()
    var budget: Amount
    var reserved: Amount
    var spent: Amount
    var open: [UInt64: Amount] = [:]
  }

  /// `budget` limits what may be reserved here and below; a unit without a value is not limited.
  package init(
    label: String, parent: Meter? = nil, budget: Amount = Amount(), machine: MachineProfile? = nil,
    readsEnergy: Bool = false
  ) throws(TamisError) {
    guard label.utf8.count <= Meter.longestLabel else {
      throw TamisError(.argument, "meter: a label of \(label.utf8.count) bytes, expected at most \(Meter.longestLabel)")
    }
    let level = (parent?.depth ?? 0) &+ 1
    guard level <= Meter.deepest else {
      throw TamisError(.argument, "meter: more than \(Meter.deepest) levels of meters")
    }
    try budget.validate()
    self.label = label
    self.parent = parent
    self.readsEnergy = readsEnergy
    self.machine = machine ?? parent?.machine
    depth = level
    state = Guarded(State(budget: budget, reserved: budget.nothing, spent: budget.nothing))
  }

  /// Reservations nobody settled count as spent: the work may have been done.
  deinit {
    guard let parent else { return }
    for amount in state.withLock({ Array($0.open.values) }) {
      try? parent.move(amount, toSpent: amount)
    }
  }
}

// MARK: Counting

extension Meter {
  package func charge(_ cost: Cost) throws(TamisError) {
    try state.withLock { (state: inout State) throws(TamisError) in
      let sum = try state.cost.adding(cost)
      try parent?.charge(cost)
      state.cost = sum
    }
  }

  package func read() -> Cost { state.withLock { $0.cost } }
}

// MARK: Budgets

/// A promise that an amount is there; named by a number so that using it twice is noticed.
package struct Reservation: Sendable, Equatable {
  package let id: UInt64
  package init(id: UInt64) { self.id = id }
}

/// Limit, what is held by open reservations, and what is spent.
package struct BudgetState: Sendable, Equatable {
  package let limit: Amount
  package let reserved: Amount
  package let spent: Amount
}

extension Meter {
  /// Holds an upper bound before the work; .budget when this meter or a parent has not that much left.
  package func reserve(_ amount: Amount) throws(TamisError) -> Reservation {
    try amount.validate()
    return try state.withLock { (state: inout State) throws(TamisError) in
      guard state.open.count < Meter.mostReservations else {
        throw TamisError(.full, "meter: \(state.open.count) open reservations")
      }
      try hold(amount, in: &state)
      let id = Meter.reservations.wrappingAdd(1, ordering: .relaxed).newValue
      state.open[id] = amount
      return Reservation(id: id)
    }
  }

  /// Replaces a reservation by what the work took. More than was reserved is refused and leaves the reservation open.
  package func settle(_ reservation: Reservation, actual: Amount) throws(TamisError) {
    try actual.validate()
    try state.withLock { (state: inout State) throws(TamisError) in
      guard let amount = state.open[reservation.id] else {
        throw TamisError(.argument, "meter: no such reservation is open; it may have been settled before")
      }
      guard amount.hasSameUnits(as: actual) else {
        throw TamisError(.argument, "meter: the settlement's units or currency are not those of the reservation")
      }
      if let unit = try amount.unit(exceededBy: actual) {
        throw TamisError(.argument, "meter: the settlement takes more \(unit) than was reserved")
      }
      try move(amount, toSpent: actual, in: &state)
      state.open[reservation.id] = nil
    }
  }

  /// Changes limits, not units: what was held and spent so far stays comparable. A limit below that refuses all more.
  package func setBudget(_ budget: Amount) throws(TamisError) {
    try budget.validate()
    try state.withLock { (state: inout State) throws(TamisError) in
      guard state.budget.hasSameUnits(as: budget) else {
        throw TamisError(.argument, "meter: a budget's units and currency are those it was created with")
      }
      state.budget = budget
    }
  }

  package func budget() -> BudgetState {
    state.withLock { BudgetState(limit: $0.budget, reserved: $0.reserved, spent: $0.spent) }
  }

  private func hold(_ amount: Amount) throws(TamisError) {
    try state.withLock { (state: inout State) throws(TamisError) in try hold(amount, in: &state) }
  }

  private func hold(_ amount: Amount, in state: inout State) throws(TamisError) {
    let reserved = try state.reserved.adding(state.budget.part(of: amount))
    if let unit = try state.budget.unit(exceededBy: try reserved.adding(state.spent)) {
      throw TamisError(.budget, "meter \"\(label)\": the budget has not that much \(unit) left")
    }
    try parent?.hold(amount)
    state.reserved = reserved
  }

  private func move(_ amount: Amount, toSpent actual: Amount) throws(TamisError) {
    try state.withLock { (state: inout State) throws(TamisError) in try move(amount, toSpent: actual, in: &state) }
  }

  private func move(_ amount: Amount, toSpent actual: Amount, in state: inout State) throws(TamisError) {
    let reserved = try state.reserved.subtracting(state.budget.part(of: amount))
    let spent = try state.spent.adding(state.budget.part(of: actual))
    try parent?.move(amount, toSpent: actual)
    state.reserved = reserved
    state.spent = spent
  }
}
