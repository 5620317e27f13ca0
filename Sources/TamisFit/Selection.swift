// The selected-set loss of DeepSeek-V3.2's sparse stage: both distributions are renormalised over the k keys that the
// indexer itself would choose now, and keys outside have no gradient. Ties go to the lower index.

import Glibc
import TamisKernels

enum Selection {
  /// Floats behind the two rows that a selection is made in.
  static let scratchFloats = Int(TK_SHRINK_SCRATCH) / 4 + 64
  /// What a key outside has for a score: its softmax is zero, and times zero probability it is zero.
  private static let outside: Float = -1e30

  /// Keeps the best k of scores [count] and sets the others outside; `masked` becomes p over the chosen, renormalised.
  /// Returns the sum of p log p there, or nil where the chosen hold no attention to learn from.
  static func keep(
    _ kernels: UnsafePointer<tk_table>, k: Int, count: Int, scores: UnsafeMutablePointer<Float>,
    p: UnsafePointer<Float>, masked: UnsafeMutablePointer<Float>, memory: UnsafeMutablePointer<Float>, stride: Int
  ) -> Float? {
    let values = memory
    let indices = UnsafeMutableRawPointer(memory + stride).assumingMemoryBound(to: Int32.self)
    let scratch = UnsafeMutableRawPointer(memory + 2 &* stride)
    kernels.pointee.select_all(scores, Int32(truncatingIfNeeded: count), 0, values, indices)
    _ = kernels.pointee.select_shrink(
      values, indices, Int32(truncatingIfNeeded: count), Int32(truncatingIfNeeded: k), scratch)
    var mass: Float = 0
    for i in 0..<max(k, 0) { mass += p[Int(indices[i])] }
    guard mass > 1e-6 else { return nil }
    scores.update(repeating: outside, count: count)
    masked.update(repeating: 0, count: count)
    var entropy: Float = 0
    for i in 0..<max(k, 0) {
      let at = Int(indices[i])
      let share = p[at] / mass
      scores[at] = values[i]
      masked[at] = share
      if share > 0 { entropy += share * logf(share) }
    }
    return entropy
  }
}
