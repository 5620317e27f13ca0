// One evaluation of the divergence between the host's attention p and the softmax Q of the index scores, over a sample
// of query rows of one sequence, and its gradient for every parameter (the chain rule by hand):
//
//   q_th = Rot_t(Wq r_t)_h    k_s = Rot_s(LayerNorm(Wk x_s))    w_th = c (Ww x_t)_h    a_ths = q_th . k_s
//   I_ts = sum_h w_th max(0, a_ths)    Q_t = softmax_s I_ts    L = mean_t sum_s p_ts (log p_ts - log Q_ts)
//   G = dL/dI = (Q - p) / rows    dL/dw_th = sum_s G_ts max(0, a_ths)    A_ths = G_ts w_th [a_ths > 0]
//   dL/dq_th = sum_s A_ths k_s    dL/dk_s = sum_th A_ths q_th
//
// Sixteen rows at a time for all heads: three products (scores, query and key gradients) and three passes over rows.
// It refuses nothing: everything was checked when it was captured.

import TamisKernels
import TamisRuntime

struct Step {
  let context: Context
  let shape: IndexerShape
  let memory: StepMemory
  let rotary: RotaryTable
  let keys: KeySide
  /// 0: over everything a row sees.
  let selected: Int

  init(_ context: Context, _ shape: IndexerShape, _ memory: StepMemory, _ rotary: RotaryTable, selected: Int) {
    self.context = context
    self.shape = shape
    self.memory = memory
    self.rotary = rotary
    self.selected = selected
    keys = KeySide(context: context, shape: shape, memory: memory, rotary: rotary)
  }

  /// The mean divergence over `rows` (row numbers of the sequence, positions ascending); fills `gradient`.
  func run(
    _ parameters: UnsafePointer<Float>, _ sequence: CapturedSequence, rows: UnsafeBufferPointer<Int32>,
    gradient: UnsafeMutablePointer<Float>
  ) -> Float {
    guard rows.count > 0, let start = rows.baseAddress else { return 0 }
    var longest = 0
    for row in rows { longest = max(longest, sequence.visible(Int(row))) }
    keys.forward(parameters, hidden: sequence.hidden.start, tokens: longest)
    gather(sequence, rows)
    queries(parameters, rows.count) { Int(sequence.positions.start[Int(start[$0])]) }
    let reach = tiles(sequence, rows)
    queryGradient(rows.count, gradient) { Int(sequence.positions.start[Int(start[$0])]) }
    keys.backward(parameters, hidden: sequence.hidden.start, reach: reach, gradient: gradient)
    var loss: Float = 0
    for row in 0..<rows.count { loss += memory.loss[row] }
    return loss / Float(rows.count)
  }

  private func gather(_ sequence: CapturedSequence, _ rows: UnsafeBufferPointer<Int32>) {
    for (i, row) in rows.enumerated() {
      (memory.features + i &* shape.features).update(
        from: sequence.features.start + Int(row) &* shape.features, count: shape.features)
      (memory.hidden + i &* shape.width).update(
        from: sequence.hidden.start + Int(sequence.positions.start[Int(row)]) &* shape.width, count: shape.width)
    }
  }

  /// memory.query, turned, and memory.weight, scaled, from the gathered features and hidden states.
  func queries(_ parameters: UnsafePointer<Float>, _ rows: Int, position: (Int) -> Int) {
    let width = shape.queryWidth
    let parts = (width &+ 63) / 64
    context.parallel(count: parts, workers: context.threads) { part, _ in
      let first = part &* 64
      accumulate(
        context.kernels, memory.features, (shape.features, 1), parameters + (shape.queryAt &+ first), width, rows: rows,
        min(64, width &- first), shape.features, add: false, memory.query + first, width)
    }
    accumulate(
      context.kernels, memory.hidden, (shape.width, 1), parameters + shape.weightAt, shape.paddedHeads, rows: rows,
      shape.paddedHeads, shape.width, add: false, memory.weight, shape.paddedHeads)
    for i in 0..<max(rows, 0) {
      let weights = memory.weight + i &* shape.paddedHeads
      for h in 0..<shape.heads {
        weights[h] *= shape.weightScale
        rotary.turn(memory.query + (i &* width &+ h &* shape.dim), position: position(i), sign: 1)
      }
    }
  }

  // MARK: Tiles of rows

  /// Runs every tile forward and back; how many keys each group's gradients cover.
  private func tiles(_ sequence: CapturedSequence, _ rows: UnsafeBufferPointer<Int32>) -> [Int] {
    let tiles = (rows.count &+ StepMemory.tile &- 1) / StepMemory.tile
    let groups = min(StepMemory.groups, tiles)
    var reach: [Int] = []
    for group in 0..<groups {
      var most = 0
      for row in rows[bounds(group, groups, tiles, rows.count)] { most = max(most, sequence.visible(Int(row))) }
      reach.append(most)
    }
    reach.withUnsafeBufferPointer { reach in
      _ = context.parallel(count: groups, workers: memory.workers) { group, worker in
        let range = bounds(group, groups, tiles, rows.count)
        // The widest tile comes first, so that the gradients it begins need not be cleared.
        var end = range.upperBound
        while end > range.lowerBound {
          let first = range.lowerBound &+ (end &- 1 &- range.lowerBound) / StepMemory.tile &* StepMemory.tile
          tile(sequence, rows, first: first, count: end &- first, group, worker, add: end < range.upperBound)
          end = first
        }
      }
    }
    return reach
  }

  /// The rows of a group of tiles.
  private func bounds(_ group: Int, _ groups: Int, _ tiles: Int, _ rows: Int) -> Range<Int> {
    let first = group &* tiles / groups &* StepMemory.tile
    return first..<max(first, min(rows, (group &+ 1) &* tiles / groups &* StepMemory.tile))
  }

  private func tile(
    _ sequence: CapturedSequence, _ rows: UnsafeBufferPointer<Int32>, first: Int, count: Int, _ group: Int,
    _ worker: Int, add: Bool
  ) {
    let kernels = context.kernels
    let (heads, dim, stride) = (shape.heads, shape.dim, memory.stride)
    let scores = memory.scores(worker)
    let query = memory.query + first &* shape.queryWidth
    var longest = 0
    for i in 0..<count { longest = max(longest, sequence.visible(Int(rows[first &+ i]))) }
    let whole = (longest &+ 15) & ~15
    accumulate(
      kernels, query, (dim, 1), memory.keyTransposed, stride, rows: count &* heads, whole, dim, add: false, scores,
      stride)
    let target = memory.target(worker, shape)
    TargetRows.compute(kernels, sequence, count: count, scratch: target) { Int(rows[first &+ $0]) }
    for i in 0..<count {
      let row = Int(rows[first &+ i])
      let p = TargetRows.pointer(sequence, row: row, inTile: i, scratch: target)
      back(sequence, row, slot: first &+ i, p: p, scores: scores + i &* heads &* stride, rows: rows.count, worker)
      let visible = sequence.visible(row)
      for h in 0..<heads {
        (scores + ((i &* heads &+ h) &* stride &+ visible)).update(repeating: 0, count: longest &- visible)
      }
    }
    accumulate(
      kernels, scores, (stride, 1), memory.key, dim, rows: count &* heads, dim, longest, add: false,
      memory.queryGradient + first &* shape.queryWidth, dim)
    accumulate(
      kernels, scores, (1, stride), query, dim, rows: longest, dim, count &* heads, add: add,
      memory.keyGradient + group &* memory.tokens &* dim, dim)
  }

  /// One row: its divergence, and its scores [heads, stride] become their gradients.
  private func back(
    _ sequence: CapturedSequence, _ row: Int, slot: Int, p: UnsafePointer<Float>, scores: UnsafeMutablePointer<Float>,
    rows: Int, _ worker: Int
  ) {
    let kernels = context.kernels
    let visible = sequence.visible(row)
    let count = Int32(truncatingIfNeeded: visible)
    let heads = Int32(truncatingIfNeeded: shape.heads)
    let mixed = memory.mixed(worker, shape)
    let weight = memory.weight + slot &* shape.paddedHeads
    kernels.pointee.mix(scores, memory.stride &* 4, weight, heads, count, mixed)
    var p = p
    var entropy: Float? = sequence.entropy.start[row]
    if selected > 0, visible > selected {
      let masked = memory.masked(worker, shape)
      entropy = Selection.keep(
        kernels, k: selected, count: visible, scores: mixed, p: p, masked: masked,
        memory: memory.selection(worker, shape), stride: memory.stride)
      p = UnsafePointer(masked)
    }
    var (top, sum, product): (Float, Float, Float) = (0, 1, 0)
    // A row whose chosen keys hold no attention has nothing to say: no divergence, no gradient.
    var rate: Float = 0
    if let entropy {
      kernels.pointee.soften(mixed, p, count, 1, &top, &sum, &product)
      rate = 1 / Float(rows)
      memory.loss[slot] = entropy - product + top + sum.logarithm
    } else {
      memory.loss[slot] = 0
    }
    kernels.pointee.mix_back(
      scores, memory.stride &* 4, weight, heads, count, mixed, 1 / sum, p, rate,
      memory.weightGradient + slot &* shape.paddedHeads)
  }

  // MARK: Gradients of the query side

  private func queryGradient(_ rows: Int, _ gradient: UnsafeMutablePointer<Float>, position: (Int) -> Int) {
    let (width, padded) = (shape.queryWidth, shape.paddedHeads)
    for i in 0..<max(rows, 0) {
      let weights = memory.weightGradient + i &* padded
      for h in 0..<shape.heads {
        weights[h] *= shape.weightScale
        rotary.turn(memory.queryGradient + (i &* width &+ h &* shape.dim), position: position(i), sign: -1)
      }
      (weights + shape.heads).update(repeating: 0, count: padded &- shape.heads)
    }
    let parts = (shape.features &+ 31) / 32
    context.parallel(count: parts, workers: context.threads) { part, _ in
      let first = part &* 32
      accumulate(
        context.kernels, memory.features + first, (1, shape.features), memory.queryGradient, width,
        rows: min(32, shape.features &- first), width, rows, add: false,
        gradient + (shape.queryAt &+ first &* width), width)
    }
    accumulate(
      context.kernels, memory.hidden, (1, shape.width), memory.weightGradient, padded, rows: shape.width, padded, rows,
      add: false, gradient + shape.weightAt, padded)
  }
}
