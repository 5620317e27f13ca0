// The memory of one step over at most `rows` tokens: activations in Float, borrowed from the context and given back
// at the end of the call. It refuses sizes that overflow.

import TamisRuntime

typealias Floats = UnsafeMutablePointer<Float>

final class Workspace {
  private let context: Context
  private let scratch: Scratch
  let rows: Int

  let hidden: Floats  // [rows, hidden]
  let normed: Floats  // [rows, hidden]
  let added: Floats  // [rows, hidden]: what a block adds to hidden
  let queryLatent: Floats  // [rows, queryLatent]
  let query: Floats  // [rows, heads, nope + rope]
  let key: Floats  // [rows, latent + rope]
  let absorbed: Floats  // [rows, heads, latent + rope]
  let attended: Floats  // [rows, heads, latent]
  let lse: Floats  // [rows, heads]: traced calls only
  let values: Floats  // [rows, heads * value]
  let rotary: RotaryRows
  let indexQuery: Floats  // [rows, index heads, index dim]
  let indexKey: Floats  // [rows, index dim]
  let indexWeights: Floats  // [rows, index heads]
  let indices: UnsafeMutablePointer<Int32>  // [rows, topK]
  let gate: Floats  // [rows, intermediate], or [rows, shared intermediate] and [rows * perToken, intermediate]
  let up: Floats  // the same
  let logits: Floats  // [rows, routed + routed + groups]: scores, then the router's scratch
  let chosen: UnsafeMutablePointer<Int32>  // [rows, perToken]
  let weights: Floats  // [rows, perToken]
  let slots: UnsafeMutablePointer<Int32>  // [rows, perToken]: where a chosen expert works for the row
  let gathered: Floats  // [rows * perToken, hidden]: the experts' inputs
  let expertOut: Floats  // [rows * perToken, hidden]

  /// Numbers of a row in each area, in their order.
  private static func widths(_ config: ModelConfig, topK: Int, traces: Bool) throws(TamisError) -> [Int] {
    let index = config.index
    let experts = config.experts
    let perToken = experts?.perToken ?? 0
    let inExperts = try Size.sum(
      experts?.sharedIntermediate ?? 0, Size.product(perToken, experts?.intermediate ?? 0))
    let widest = max(config.intermediate, inExperts)
    let routing = (experts?.routed ?? 0) &* 2 &+ (experts?.groups ?? 0)
    let half = config.rope / 2
    return [
      config.hidden, config.hidden, config.hidden, config.queryLatent, config.heads &* config.queryDim, config.keyDim,
      config.heads &* config.keyDim, config.heads &* config.latent, traces ? config.heads : 0,
      config.heads &* config.value, half, half,
      (index?.heads ?? 0) &* (index?.dim ?? 0), index?.dim ?? 0, index?.heads ?? 0, topK, widest, widest, routing,
      perToken, perToken, perToken, try Size.product(perToken, config.hidden),
      try Size.product(perToken, config.hidden),
    ]
  }

  private static let automaticBytes = 128 << 20

  /// As many rows as a moderate amount of memory holds.
  static func automaticRows(_ config: ModelConfig, topK: Int, traces: Bool) throws(TamisError) -> Int {
    var perRow = 0
    for width in try widths(config, topK: topK, traces: traces) {
      perRow = try Size.sum(perRow, Size.product(width, 4))
    }
    return max(16, min(512, automaticBytes / max(perRow, 1)))
  }

  /// topK: keys that a row selects at most in this call; 0: no selection.
  init(_ context: Context, _ config: ModelConfig, rows: Int, topK: Int, traces: Bool) throws(TamisError) {
    var offsets: [Int] = []
    var total = 0
    for width in try Workspace.widths(config, topK: topK, traces: traces) {
      offsets.append(total)
      total = try Size.sum(total, Size.roundUp(Size.product(rows, width, 4), to: 64))
    }
    let scratch = try context.borrowScratch(bytes: total)
    self.context = context
    self.scratch = scratch
    self.rows = rows
    var next = offsets.makeIterator()
    func floats() -> Floats { (scratch.pointer + (next.next() ?? 0)).assumingMemoryBound(to: Float.self) }
    func integers() -> UnsafeMutablePointer<Int32> {
      (scratch.pointer + (next.next() ?? 0)).assumingMemoryBound(to: Int32.self)
    }
    hidden = floats()
    normed = floats()
    added = floats()
    queryLatent = floats()
    query = floats()
    key = floats()
    absorbed = floats()
    attended = floats()
    lse = floats()
    values = floats()
    rotary = RotaryRows(half: config.rope / 2, cosine: floats(), sine: floats())
    indexQuery = floats()
    indexKey = floats()
    indexWeights = floats()
    indices = integers()
    gate = floats()
    up = floats()
    logits = floats()
    chosen = integers()
    weights = floats()
    slots = integers()
    gathered = floats()
    expertOut = floats()
  }

  deinit { context.returnScratch(scratch) }
}
