// Owns the streaming top-k: scores arrive in tiles in ascending key order, and only those above a running threshold
// are kept, so memory is O(k) however many keys there are. Exact: a key that ties with the k-th best comes later and
// loses to the lower index, so "strictly greater than the k-th best so far" is the whole rule.
//
// Invariants: candidates are in ascending index order; once `full`, they hold the best k of what was seen before the
// last shrink and every later key above `threshold`. Nothing is ever sorted.

import TamisKernels
import TamisRuntime

/// The candidates of one query row, in memory lent by the caller.
package struct Candidates {
  let kernels: UnsafePointer<tk_table>
  let k: Int
  let capacity: Int
  let scores: UnsafeMutablePointer<Float>
  let indices: UnsafeMutablePointer<Int32>
  private(set) var count = 0
  private(set) var threshold: Float = -.infinity
  private(set) var full = false

  /// Keys offered at a time.
  package static let tile = 1024

  /// Room for twice k between shrinks keeps their share of the work constant; small k would shrink too often.
  static func capacity(k: Int) -> Int { 2 &* max(k, 1024) &+ tile &+ 16 }
  static func bytes(k: Int) -> Int { capacity(k: k) &* 8 }

  init(_ kernels: UnsafePointer<tk_table>, k: Int, memory: UnsafeMutableRawPointer) {
    self.kernels = kernels
    self.k = k
    capacity = Candidates.capacity(k: k)
    scores = memory.assumingMemoryBound(to: Float.self)
    indices = (memory + capacity &* 4).assumingMemoryBound(to: Int32.self)
  }

  /// Starts with a threshold guessed from a sample: exact only if at least k keys turn out to be above it.
  mutating func begin(guess: Float?) {
    count = 0
    full = guess != nil
    threshold = guess ?? -.infinity
  }

  /// Takes over `count` candidates that already lie in the memory.
  mutating func adopt(count: Int) {
    self.count = count
  }

  /// tile [n], n <= Candidates.tile: the scores of keys base ..< base + n.
  @inline(__always)
  mutating func offer(_ tile: UnsafePointer<Float>, _ n: Int, base: Int, scratch: UnsafeMutableRawPointer) {
    if count &+ n &+ 16 > capacity { shrink(scratch) }
    if full {
      count &+= Int(
        kernels.pointee.select_above(
          tile, Int32(truncatingIfNeeded: n), Int32(truncatingIfNeeded: base), threshold, scores + count,
          indices + count))
    } else {
      kernels.pointee.select_all(
        tile, Int32(truncatingIfNeeded: n), Int32(truncatingIfNeeded: base), scores + count, indices + count)
      count &+= n
    }
  }

  /// Appends candidates found elsewhere, over later keys.
  mutating func append(_ other: Candidates, scratch: UnsafeMutableRawPointer) {
    var done = 0
    while done < other.count {
      let n = min(other.count &- done, Candidates.tile)
      if count &+ n &+ 16 > capacity { shrink(scratch) }
      (scores + count).update(from: other.scores + done, count: n)
      (indices + count).update(from: other.indices + done, count: n)
      count &+= n
      done &+= n
    }
  }

  mutating func shrink(_ scratch: UnsafeMutableRawPointer) {
    guard count > k else { return }
    threshold = kernels.pointee.select_shrink(
      scores, indices, Int32(truncatingIfNeeded: count), Int32(truncatingIfNeeded: k), scratch)
    count = k
    full = true
  }

  /// Writes the chosen keys, -1 behind them; values may be nil.
  mutating func finish(
    indices out: UnsafeMutablePointer<Int32>, scores values: UnsafeMutablePointer<Float>?, width: Int,
    scratch: UnsafeMutableRawPointer
  ) {
    shrink(scratch)
    out.update(from: indices, count: count)
    values?.update(from: scores, count: count)
    for i in count..<max(width, count) {
      out[i] = -1
      values?[i] = -.infinity
    }
  }
}
