// Sums over rows for a diagnosis: every row is ranked twice, by attention and by index score, and adds its captured
// mass at every k to two curves. Ties go to the lower index, NaN last. Memory is proportional to the longest sequence.

import Glibc
import TamisRuntime

struct DiagnosisSums {
  private let context: Context
  private let tokens: Int
  private let k: [Int]
  private let curves: Doubles  // oracle, then indexer: [2][tokens + 1] sums of mass at k
  private let order: Positions  // oracle's order, indexer's order, indexer's rank: [3][tokens]
  private var recency: [Double]
  private var random: [Double]
  private var recall: [Double]
  private var divergence = 0.0
  private(set) var rows = 0
  private var rowsBefore = 0
  private var sequences = 0

  init(_ context: Context, tokens: Int, k: [Int]) throws(TamisError) {
    self.context = context
    self.tokens = tokens
    self.k = k
    curves = try Doubles(context, Size.product(2, Size.sum(tokens, 1)))
    order = try Positions(context, Size.product(3, tokens))
    recency = k.map { _ in 0 }
    random = recency
    recall = recency
  }

  mutating func endSequence() {
    if rows > rowsBefore { sequences &+= 1 }
    rowsBefore = rows
  }

  mutating func add(
    scores: UnsafePointer<Float>, p: UnsafePointer<Float>, visible: Int, position: Int, entropy: Float
  ) {
    rows &+= 1
    let best = sorted(p, visible, into: order.start)
    let found = sorted(scores, visible, into: order.start + tokens)
    addCurve(best, p, visible, curves.start)
    addCurve(found, p, visible, curves.start + (tokens &+ 1))
    let rank = order.start + 2 &* tokens
    for i in 0..<max(visible, 0) { rank[Int(found[i])] = Int32(truncatingIfNeeded: i) }
    for (slot, k) in k.enumerated() {
      let kept = min(k, visible)
      var both = 0
      for i in 0..<max(kept, 0) where Int(rank[Int(best[i])]) < kept { both &+= 1 }
      recall[slot] += Double(both) / Double(max(kept, 1))
      random[slot] += Double(kept) / Double(max(visible, 1))
      recency[slot] += nearest(p, visible, position, kept)
    }
    divergence += Double(entropy) - crossEntropy(scores, p, visible)
  }

  func result(mass: Double) -> Diagnosis {
    var diagnosis = Diagnosis()
    diagnosis.rows = rows
    diagnosis.sequences = sequences
    diagnosis.warnings = .of(sequences: sequences, rows: rows)
    let count = Double(max(rows, 1))
    diagnosis.divergence = divergence / count
    diagnosis.oracleK = smallest(curves.start, mass * count)
    diagnosis.indexerK = smallest(curves.start + (tokens &+ 1), mass * count)
    for (slot, k) in k.enumerated() {
      let at = min(k, tokens)
      diagnosis.at.append(
        CapturedMass(
          k: k, oracle: curves.start[at] / count, indexer: curves.start[tokens &+ 1 &+ at] / count,
          recency: recency[slot] / count, random: random[slot] / count, recall: recall[slot] / count))
    }
    return diagnosis
  }

  /// Indices of values, best first.
  private func sorted(
    _ values: UnsafePointer<Float>, _ count: Int, into order: UnsafeMutablePointer<Int32>
  ) -> UnsafePointer<Int32> {
    for i in 0..<max(count, 0) { order[i] = Int32(truncatingIfNeeded: i) }
    heapSort(order, count) { a, b in
      let (x, y) = (values[Int(a)], values[Int(b)])
      if x > y { return true }
      if y > x { return false }
      if x.isNaN != y.isNaN { return y.isNaN }
      return a < b
    }
    return UnsafePointer(order)
  }

  /// Adds the mass of the first 0, 1, 2, ... of an order; behind the last it stays what it is.
  private func addCurve(
    _ order: UnsafePointer<Int32>, _ p: UnsafePointer<Float>, _ visible: Int, _ curve: UnsafeMutablePointer<Double>
  ) {
    var mass = 0.0
    for i in 0..<tokens {
      if i < visible { mass += Double(p[Int(order[i])]) }
      curve[i &+ 1] += mass
    }
  }

  /// The mass of the `kept` keys nearest to a position, earlier ones first among equals.
  private func nearest(_ p: UnsafePointer<Float>, _ visible: Int, _ position: Int, _ kept: Int) -> Double {
    var (low, high) = (position, position &+ 1)
    var mass = 0.0
    for _ in 0..<max(kept, 0) {
      if low >= 0, high >= visible || position &- low <= high &- position {
        mass += Double(p[low])
        low &-= 1
      } else {
        mass += Double(p[high])
        high &+= 1
      }
    }
    return mass
  }

  /// sum of p log Q, Q the softmax of the scores.
  private func crossEntropy(_ scores: UnsafePointer<Float>, _ p: UnsafePointer<Float>, _ visible: Int) -> Double {
    var top = -Float.infinity
    for s in 0..<max(visible, 0) { top = max(top, scores[s]) }
    var (sum, product) = (0.0, 0.0)
    for s in 0..<max(visible, 0) {
      sum += exp(Double(scores[s] - top))
      product += Double(p[s]) * Double(scores[s] - top)
    }
    return product - log(sum)
  }

  /// The smallest k whose sum of masses reaches `wanted`; all keys where rounding keeps it from being reached.
  private func smallest(_ curve: UnsafePointer<Double>, _ wanted: Double) -> Int {
    for k in 0...max(tokens, 0) where curve[k] >= wanted * (1 - 1e-6) { return k }
    return tokens
  }
}

/// Sorts in place by a total order, `before` first. (The standard library's sort allocates, which can end the process.)
@inline(__always)
private func heapSort(
  _ items: UnsafeMutablePointer<Int32>, _ count: Int, by before: (Int32, Int32) -> Bool
) {
  func sink(_ start: Int, _ end: Int) {
    var parent = start
    while true {
      var child = 2 &* parent &+ 1
      guard child < end else { return }
      if child &+ 1 < end, before(items[child], items[child &+ 1]) { child &+= 1 }
      guard before(items[parent], items[child]) else { return }
      (items[parent], items[child]) = (items[child], items[parent])
      parent = child
    }
  }
  var start = count / 2
  while start > 0 {
    start &-= 1
    sink(start, count)
  }
  var end = count
  while end > 1 {
    end &-= 1
    (items[0], items[end]) = (items[end], items[0])
    sink(0, end)
  }
}

/// Doubles in a context's memory, zero at first.
private final class Doubles {
  let start: UnsafeMutablePointer<Double>
  private let count: Int
  private let context: Context

  init(_ context: Context, _ count: Int) throws(TamisError) {
    start = try context.allocate(bytes: Size.product(count, 8), alignment: 64, what: "diagnosis")
      .assumingMemoryBound(to: Double.self)
    start.update(repeating: 0, count: count)
    self.count = count
    self.context = context
  }

  deinit { context.release(start, bytes: count &* 8) }
}
