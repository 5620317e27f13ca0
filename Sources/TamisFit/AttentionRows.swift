// Attention probabilities as a host gives them, checked and averaged over heads. It refuses rows that are not
// probabilities over what the row may see.

import TamisOperators
import TamisRuntime

enum AttentionRows {
  /// How far from one a row may sum: BF16 probabilities over thousands of keys do not do better.
  static let tolerance: Float = 0.02

  /// [rows, tokens], each summing to one over what it sees, zero behind.
  static func copied(
    _ context: Context, _ attention: Tensor, _ positions: Positions, tokens: Int, allVisible: Bool
  ) throws(TamisError) -> Floats {
    let heads = attention.rank == 3 ? attention.shape[0] : 1
    let rows = try Floats(context, Size.product(positions.count, tokens), "capture")
    let one = try Floats(context, tokens, "capture")
    rows.clear()
    for row in 0..<positions.count {
      let to = rows.start + row &* tokens
      let visible = allVisible ? tokens : Int(positions.start[row]) &+ 1
      for head in 0..<max(heads, 0) {
        let from =
          attention.rank == 3
          ? attention.data + (head &* attention.stride[0] &+ row &* attention.stride[1]) : attention.row(row)
        loadFloats(attention.dtype, from, nil, 1, tokens, to: one.start, context.kernels)
        let sum = try checked(one.start, visible: visible, row: row)
        for s in 0..<visible { to[s] += one.start[s] / (sum * Float(heads)) }
      }
    }
    return rows
  }

  private static func checked(
    _ values: UnsafePointer<Float>, visible: Int, row: Int
  ) throws(TamisError) -> Float {
    var sum: Float = 0
    var negative = false
    for s in 0..<max(visible, 0) {
      sum += values[s]
      negative = negative || values[s] < 0
    }
    guard sum.isFinite, !negative, abs(sum - 1) <= tolerance else {
      throw TamisError(
        .argument,
        "attention: row \(row) sums to \(sum) over the \(visible) tokens it sees"
          + (negative ? ", with negative ones" : "") + ", expected probabilities that sum to 1")
    }
    return sum
  }
}
