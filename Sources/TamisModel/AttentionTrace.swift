// Owns where answers look: the attention mass (softmax probability, averaged over heads) that traced rows gave to spans
// of positions, summed over rows and layers. It is exact for what attention read: a sparse layer's probabilities are
// those over its selected keys. A call adds what it traced when it is through, a failed call nothing. Positions outside
// every span are not counted: a row gives 1 to all its keys of a layer together. Refuses spans that overlap or are out
// of order.
//
// Cost: see AttentionMass; per traced row and layer one of the two matrix products of attention and an exponential for
// each (head, key). A call without a trace does nothing for it.

import TamisOperators
package import TamisRuntime

package final class AttentionTrace: @unchecked Sendable {
  package let spanCount: Int
  /// Lines of the table: layers, or 1 for the sum over all.
  package let lines: Int
  /// Rows of finished calls.
  package private(set) var rows: UInt64 = 0

  private let context: Context
  private let memory: UnsafeMutableRawPointer
  private let bytes: Int
  /// [spans, 2]: begin and end.
  private let bounds: UnsafeMutablePointer<Int64>
  /// [lines, spans] of finished calls, and of the call that runs.
  private let finished: UnsafeMutablePointer<Double>
  private let pending: UnsafeMutablePointer<Double>
  private let busy = BusyFlag()

  /// bounds [spans, 2]: positions begin ..< end, ascending and disjoint. layers: those of the model for a table with a
  /// line for each layer, 0 for one line.
  package init(_ context: Context, bounds: UnsafeBufferPointer<Int64>, layers: Int) throws(TamisError) {
    guard !bounds.isEmpty, bounds.count % 2 == 0 else {
      throw TamisError(.argument, "spans: \(bounds.count) bounds, expected a begin and an end for each of 1 or more")
    }
    var last: Int64 = 0
    for span in Range(uncheckedBounds: (0, bounds.count / 2)) {
      let (begin, end) = (bounds[2 &* span], bounds[2 &* span &+ 1])
      guard begin >= last, end > begin else {
        throw TamisError(
          .argument, "spans[\(span)]: \(begin) to \(end), expected begin >= \(last) and end > begin")
      }
      last = end
    }
    guard layers >= 0 else { throw TamisError(.argument, "layers is \(layers), expected at least 0") }
    spanCount = bounds.count / 2
    lines = max(1, layers)
    self.context = context
    let table = try Size.product(lines, spanCount)
    bytes = try Size.product(Size.sum(bounds.count, table, table), 8)
    memory = try context.allocate(bytes: bytes, what: "attention trace")
    self.bounds = memory.bindMemory(to: Int64.self, capacity: bounds.count)
    finished = (memory + bounds.count &* 8).bindMemory(to: Double.self, capacity: 2 &* table)
    pending = finished + table
    for (i, bound) in bounds.enumerated() { self.bounds[i] = bound }
    finished.update(repeating: 0, count: 2 &* table)
  }

  deinit { context.release(memory, bytes: bytes) }

  /// [lines, spans]
  package var masses: UnsafeBufferPointer<Double> {
    UnsafeBufferPointer(start: finished, count: lines &* spanCount)
  }

  /// Copies the masses [lines, spans] out and returns the rows that gave them.
  package func read(to mass: UnsafeMutablePointer<Double>?) throws(TamisError) -> UInt64 {
    try busy.enter("trace")
    defer { busy.leave() }
    mass?.update(from: finished, count: lines &* spanCount)
    return rows
  }

  /// Forgets what was traced.
  package func clear() throws(TamisError) {
    try busy.enter("trace")
    defer { busy.leave() }
    finished.update(repeating: 0, count: lines &* spanCount)
    rows = 0
  }

  // MARK: A call

  func begin(layers: Int) throws(TamisError) {
    guard lines == 1 || lines == layers else {
      throw TamisError(.argument, "trace: has \(lines) layers, the model \(layers)")
    }
    try busy.enter("trace")
    pending.update(repeating: 0, count: lines &* spanCount)
  }

  /// rows: that the call traced; nil: it failed.
  func end(rows: Int?) {
    if let rows {
      for i in Range(uncheckedBounds: (0, lines &* spanCount)) { finished[i] += pending[i] }
      self.rows &+= UInt64(rows)
    }
    busy.leave()
  }

  /// One row of one layer: its keys (nil: 0, 1, 2 ...; ascending where they are named, -1 among them ignored) and the
  /// mass of each.
  func add(layer: Int, keys: UnsafePointer<Int32>?, _ mass: UnsafeBufferPointer<Float>) {
    let line = pending + (lines == 1 ? 0 : layer &* spanCount)
    if let keys { addNamed(line, keys, mass) } else { addAll(line, mass) }
  }

  private func addAll(_ line: UnsafeMutablePointer<Double>, _ mass: UnsafeBufferPointer<Float>) {
    for span in Range(uncheckedBounds: (0, spanCount)) {
      let begin = bounds[2 &* span]
      guard begin < Int64(mass.count) else { return }
      let end = min(bounds[2 &* span &+ 1], Int64(mass.count))
      var sum = 0.0
      let keys = Range(uncheckedBounds: (Int(truncatingIfNeeded: begin), Int(truncatingIfNeeded: end)))
      for key in keys { sum += Double(mass[key]) }
      line[span] += sum
    }
  }

  private func addNamed(
    _ line: UnsafeMutablePointer<Double>, _ keys: UnsafePointer<Int32>, _ mass: UnsafeBufferPointer<Float>
  ) {
    var span = 0
    for (i, mass) in mass.enumerated() where keys[i] >= 0 {
      let key = Int64(keys[i])
      if key >= bounds[2 &* span &+ 1] { span = firstSpan(endingBehind: key, from: span) }
      guard span < spanCount else { return }
      if key >= bounds[2 &* span] { line[span] += Double(mass) }
    }
  }

  /// The first span from `low` on whose end is greater than the key; spanCount: none.
  private func firstSpan(endingBehind key: Int64, from low: Int) -> Int {
    var (low, high) = (low, spanCount)
    while low < high {
      let middle = low &+ (high &- low) &>> 1
      if bounds[2 &* middle &+ 1] > key { high = middle } else { low = middle &+ 1 }
    }
    return low
  }
}
