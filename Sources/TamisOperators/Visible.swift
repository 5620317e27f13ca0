// Owns which keys a query row may see: causal (the queries are the last rows), all, or a count for each row. It
// also holds the exact sums over rows that the counters report.

package import TamisRuntime

package struct Visible {
  /// Row i sees keys 0 ..< at(i).
  private let counts: UnsafePointer<Int32>?
  private let first: Int  // visible keys of row 0, causal
  private let step: Int  // 1 causal, 0 all

  /// `queries` rows over `keys` keys. counts [queries] or nil: causal, or all.
  package init(
    counts: UnsafePointer<Int32>?, all: Bool, queries: Int, keys: Int
  ) throws(TamisError) {
    guard keys <= Int(Int32.max) else {
      throw TamisError(.unsupported, "keys: \(keys) rows, at most 2^31-1 are supported")
    }
    self.counts = counts
    if let counts {
      guard !all else { throw TamisError(.argument, "options: visible and all_visible exclude each other") }
      guard UInt(bitPattern: counts) % 4 == 0 else {
        throw TamisError(.argument, "options: visible is not aligned to 4 bytes")
      }
      first = 0
      step = 0
      for i in 0..<queries where counts[i] < 0 || Int(counts[i]) > keys {
        throw TamisError(.argument, "options: visible[\(i)] is \(counts[i]), expected 0 to \(keys)")
      }
    } else if all {
      first = keys
      step = 0
    } else {
      guard queries <= keys else {
        throw TamisError(
          .argument, "causal: \(queries) queries cannot be the last of \(keys) keys (see visible, all_visible)")
      }
      first = keys &- queries &+ 1
      step = 1
    }
  }

  @inline(__always)
  package func at(_ row: Int) -> Int {
    if let counts { return Int(counts[row]) }
    return first &+ step &* row
  }

  /// Sum over rows of visible, and of min(k, visible).
  package func sums(rows: Int, k: Int) -> (visible: Int, selected: Int) {
    var visible = 0
    var selected = 0
    for row in 0..<rows {
      let v = at(row)
      visible &+= v
      selected &+= min(k, v)
    }
    return (visible, selected)
  }
}
