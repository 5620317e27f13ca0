// Owns attention in the expanded form of MLA, for many query rows of one sequence: keys and values of each head are
// made from the latents once for all rows, a block of keys at a time, and rows attend with the heads' own dims
// (DeepSeek-V3.2: 192 and 128 instead of 576 and 512). What a row may not see or has not selected is masked. Memory is
// bounded by the block and the rows, whatever the context.
//
// Blocks lie at fixed places and every row is reduced on its own, in one order: its bits do not depend on the rows
// beside it. It refuses operands of mixed arithmetic (bf16 weights over fp32 keys): those go the absorbed way.

import TamisKernels
package import TamisRuntime

package struct ExpandedShape: Sendable {
  package let heads: Int
  package let latent: Int
  package let nope: Int
  package let rope: Int
  package let value: Int
  package let scale: Float

  package init(heads: Int, latent: Int, nope: Int, rope: Int, value: Int, scale: Float) {
    self.heads = heads
    self.latent = latent
    self.nope = nope
    self.rope = rope
    self.value = value
    self.scale = scale
  }

  var queryDim: Int { nope &+ rope }
  var keyDim: Int { latent &+ rope }
}

package enum ExpandedAttention {
  /// Keys of a block, and query rows that share a score matrix.
  static let block = 1024
  static let groupRows = 256

  /// Do weights and cached keys multiply in the same arithmetic?
  package static func takes(weight: DType, keys: DType) -> Bool {
    (weight == .f32 || weight == .f16) == (keys == .f32 || keys == .f16)
  }

  /// q F32 [n, heads, nope + rope], rotated; up [heads * (nope + value), latent]; indices [n, k] or nil: every visible
  /// key; out F32 [n, heads * value].
  package static func run(
    _ context: Context, _ shape: ExpandedShape, q: Tensor, up: Tensor, job: AttendJob, indices: Tensor?, out: Tensor
  ) throws(TamisError) {
    let began = Stopwatch()
    let token = context.beginCall()
    let plan = try ExpandedPlan(
      context, shape, up: up, keys: job.keys, rows: job.queries, selects: indices != nil)
    let scratch = try context.borrowScratch(bytes: plan.bytes)
    defer { context.returnScratch(scratch) }
    let work = ExpandedWork(
      context: context, shape: shape, plan: plan, q: q, up: up, job: job, indices: indices, out: out,
      memory: scratch.pointer)
    var others = work.begin()
    var first = 0
    while first < job.keys.count {
      try context.checkCancelled(token)
      let count = min(block, job.keys.count &- first)
      others &+= work.loadLatents(first, count)
      if let indices { others &+= work.markSelected(indices, first) }
      let at = first
      others &+= context.parallel(count: shape.heads, workers: plan.workers) { head, worker in
        guard !context.cancelled(token) else { return }
        work.attend(head: head, first: at, count: count, worker)
      }
      first &+= block
    }
    try context.checkCancelled(token)
    others &+= work.end()
    context.counters.add(.attend, began.sample(others) { work.count(&$0) })
  }
}

/// Memory: latents of a block, (max, sum) of every row and head, what every row has selected of the block, then what each
/// worker has of its own.
struct ExpandedPlan {
  let type: Int32
  let elementBytes: Int
  let workers: Int
  let statesAt: Int
  let seenAt: Int
  let workAt: Int
  /// Within a worker's memory.
  let weightsAt: Int
  let keysAt: Int
  let valuesAt: Int
  let queriesAt: Int
  let scoresAt: Int
  let sharesAt: Int
  let floatsAt: Int
  let kernelAt: Int
  let workBytes: Int
  let bytes: Int

  init(
    _ context: Context, _ shape: ExpandedShape, up: Tensor, keys: Rows, rows: Int, selects: Bool
  ) throws(TamisError) {
    let isFloat = keys.dtype == .f32 || keys.dtype == .f16
    type = Int32(isFloat ? TK_F32 : TK_BF16)
    let element = isFloat ? 4 : 2
    elementBytes = element
    workers = max(1, min(context.threads, shape.heads))
    let (block, group) = (ExpandedAttention.block, ExpandedAttention.groupRows)
    func after(_ at: Int, _ a: Int, _ b: Int, _ c: Int) throws(TamisError) -> Int {
      try Size.roundUp(Size.sum(at, Size.product(a, b, c)), to: 64)
    }
    let direct = up.dtype == (isFloat ? .f32 : .bf16)
    weightsAt = 0
    keysAt = try after(weightsAt, direct ? 0 : shape.nope &+ shape.value, shape.latent, element)
    valuesAt = try after(keysAt, block, shape.queryDim, element)
    queriesAt = try after(valuesAt, shape.value, block, element)
    scoresAt = try after(queriesAt, group, shape.queryDim, element)
    sharesAt = try after(scoresAt, group, block, 4)
    floatsAt = try after(sharesAt, group, block, element)
    // Expanded keys [block, nope], values [value, block] and a group's output [group, value], one after another.
    kernelAt = try after(floatsAt, max(block &* max(shape.nope, shape.value), group &* shape.value), 1, 4)
    let kernels = context.kernels.pointee
    var kernel = 0
    for (r, o, i) in [
      (block, shape.nope, shape.latent), (shape.value, block, shape.latent), (group, block, shape.queryDim),
      (group, shape.value, block),
    ] {
      kernel = max(
        kernel,
        kernels.matmul_scratch_bytes(
          type, Int32(truncatingIfNeeded: r), Int32(truncatingIfNeeded: o), Int32(truncatingIfNeeded: i)))
    }
    workBytes = try Size.roundUp(Size.sum(kernelAt, kernel), to: 64)
    statesAt = try after(0, block, shape.keyDim, element)
    seenAt = try after(statesAt, rows, shape.heads, 8)
    workAt = try after(seenAt, selects ? rows : 0, block / 64, 8)
    bytes = try Size.sum(workAt, Size.product(workers, workBytes))
  }
}

struct ExpandedWork {
  let context: Context
  let shape: ExpandedShape
  let plan: ExpandedPlan
  let q: Tensor
  let up: Tensor
  let job: AttendJob
  let indices: Tensor?
  let out: Tensor
  let memory: UnsafeMutableRawPointer

  private var kernels: UnsafePointer<tk_table> { context.kernels }
  private var keyRow: Int { shape.queryDim &* plan.elementBytes }

  /// Maximum and sum of a row's head.
  private func state(_ row: Int, _ head: Int) -> UnsafeMutablePointer<Float> {
    (memory + plan.statesAt).assumingMemoryBound(to: Float.self) + (row &* shape.heads &+ head) &* 2
  }

  private func result(_ row: Int, _ head: Int) -> UnsafeMutablePointer<Float> {
    out.row(row).assumingMemoryBound(to: Float.self) + head &* shape.value
  }

  // MARK: Whole rows

  func begin() -> UInt64 {
    context.parallel(count: job.queries, workers: plan.workers) { row, _ in
      result(row, 0).update(repeating: 0, count: shape.heads &* shape.value)
      var head = 0
      while head < shape.heads {
        state(row, head)[0] = -.infinity
        state(row, head)[1] = 0
        head &+= 1
      }
    }
  }

  /// Divides by the denominators.
  func end() -> UInt64 {
    context.parallel(count: job.queries, workers: plan.workers) { row, _ in
      var head = 0
      while head < shape.heads {
        let sum = state(row, head)[1]
        let factor = sum > 0 ? 1 / sum : 0
        let line = result(row, head)
        var i = 0
        while i < shape.value {
          line[i] *= factor
          i &+= 1
        }
        head &+= 1
      }
    }
  }

  /// Keys first ..< first + count as operands: [count, latent + rope].
  func loadLatents(_ first: Int, _ count: Int) -> UInt64 {
    let row = shape.keyDim &* plan.elementBytes
    return context.parallel(count: count, workers: plan.workers) { i, _ in
      load(job.keys, first &+ i, to: memory + i &* row, bytes: row)
    }
  }

  /// A bit for each key of a block: has the row selected it?
  private func seen(_ row: Int) -> UnsafeMutablePointer<UInt64> {
    (memory + plan.seenAt).assumingMemoryBound(to: UInt64.self) + row &* (ExpandedAttention.block / 64)
  }

  /// What each row has selected of keys first ..< first + block.
  func markSelected(_ indices: Tensor, _ first: Int) -> UInt64 {
    context.parallel(count: job.queries, workers: plan.workers) { row, _ in
      let bits = seen(row)
      bits.update(repeating: 0, count: ExpandedAttention.block / 64)
      let list = indices.row(row).assumingMemoryBound(to: Int32.self)
      var at = lowerBound(list, indices.shape[1], first)
      let end = lowerBound(list, indices.shape[1], first &+ ExpandedAttention.block)
      while at < end {
        let key = Int(list[at]) &- first
        bits[key &>> 6] |= 1 &<< UInt64(truncatingIfNeeded: key & 63)
        at &+= 1
      }
    }
  }

  private func load(_ rows: Rows, _ s: Int, to: UnsafeMutableRawPointer, bytes: Int) {
    if rows.dtype == (plan.type == Int32(TK_F32) ? .f32 : .bf16) {
      to.copyMemory(from: rows.row(s), byteCount: bytes)
    } else if plan.type == Int32(TK_F32) {
      loadFloats(rows.dtype, rows.row(s), nil, 1, rows.elements, to: to.assumingMemoryBound(to: Float.self), kernels)
    } else {
      rows.expand(s, to: to.assumingMemoryBound(to: UInt16.self), kernels)
    }
  }

  /// Floats as operands of the products.
  private func store(_ floats: UnsafePointer<Float>, _ count: Int, to: UnsafeMutableRawPointer) {
    storeFloats(floats, count, as: plan.type == Int32(TK_F32) ? .f32 : .bf16, to: to, kernels)
  }

  // MARK: One head over one block

  func attend(head: Int, first: Int, count: Int, _ worker: Int) {
    let work = memory + (plan.workAt &+ worker &* plan.workBytes)
    let (weights, stride) = weights(head, work)
    expandKeys(weights, stride, count, work)
    expandValues(weights + shape.nope &* stride, stride, count, work)
    var row = 0
    while row < job.queries {
      let rows = min(ExpandedAttention.groupRows, job.queries &- row)
      // The last row of a group sees most.
      let seen = min(count, job.visible.at(row &+ rows &- 1) &- first)
      if seen > 0 { attend(head, rows: row, rows, first: first, count: seen, work) }
      row &+= rows
    }
  }

  /// W_UK and W_UV of a head: [nope + value, latent].
  private func weights(_ head: Int, _ work: UnsafeMutableRawPointer) -> (UnsafeRawPointer, Int) {
    let rows = Rows(up)
    let begin = head &* (shape.nope &+ shape.value)
    let isDirect = up.dtype == (plan.type == Int32(TK_F32) ? .f32 : .bf16)
    if isDirect { return (rows.row(begin), rows.stride) }
    let bytes = shape.latent &* plan.elementBytes
    var i = 0
    while i < shape.nope &+ shape.value {
      load(rows, begin &+ i, to: work + (plan.weightsAt &+ i &* bytes), bytes: bytes)
      i &+= 1
    }
    return (UnsafeRawPointer(work + plan.weightsAt), bytes)
  }

  private func matmul(
    _ x: UnsafeRawPointer, _ xStride: Int, _ w: UnsafeRawPointer, _ wStride: Int, rows: Int, outputs: Int, inputs: Int,
    to y: UnsafeMutablePointer<Float>, _ yStride: Int, _ work: UnsafeMutableRawPointer
  ) {
    kernels.pointee.matmul(
      plan.type, x, xStride, w, wStride, Int32(truncatingIfNeeded: rows), Int32(truncatingIfNeeded: outputs),
      Int32(truncatingIfNeeded: inputs), y, yStride &* 4, work + plan.kernelAt)
  }

  /// [count, nope + rope]: W_UK c, and the rotary part as it is cached.
  private func expandKeys(_ weights: UnsafeRawPointer, _ stride: Int, _ count: Int, _ work: UnsafeMutableRawPointer) {
    let floats = (work + plan.floatsAt).assumingMemoryBound(to: Float.self)
    let latent = shape.keyDim &* plan.elementBytes
    matmul(
      memory, latent, weights, stride, rows: count, outputs: shape.nope, inputs: shape.latent, to: floats, shape.nope,
      work)
    var i = 0
    while i < count {
      let key = work + (plan.keysAt &+ i &* keyRow)
      store(floats + i &* shape.nope, shape.nope, to: key)
      (key + shape.nope &* plan.elementBytes).copyMemory(
        from: memory + (i &* latent &+ shape.latent &* plan.elementBytes), byteCount: shape.rope &* plan.elementBytes)
      i &+= 1
    }
  }

  /// [value, count], as the last product takes it: c W_UV turned.
  private func expandValues(_ weights: UnsafeRawPointer, _ stride: Int, _ count: Int, _ work: UnsafeMutableRawPointer) {
    let floats = (work + plan.floatsAt).assumingMemoryBound(to: Float.self)
    matmul(
      weights, stride, memory, shape.keyDim &* plan.elementBytes, rows: shape.value, outputs: count,
      inputs: shape.latent, to: floats, ExpandedAttention.block, work)
    let row = ExpandedAttention.block &* plan.elementBytes
    var i = 0
    while i < shape.value {
      store(floats + i &* ExpandedAttention.block, count, to: work + (plan.valuesAt &+ i &* row))
      i &+= 1
    }
  }

  /// Query rows row ..< row + rows over keys first ..< first + count.
  private func attend(
    _ head: Int, rows row: Int, _ rows: Int, first: Int, count: Int, _ work: UnsafeMutableRawPointer
  ) {
    let scores = (work + plan.scoresAt).assumingMemoryBound(to: Float.self)
    let out = (work + plan.floatsAt).assumingMemoryBound(to: Float.self)
    let width = ExpandedAttention.block
    var i = 0
    while i < rows {
      let from = q.row(row &+ i) + head &* q.stride[1]
      store(from.assumingMemoryBound(to: Float.self), shape.queryDim, to: work + (plan.queriesAt &+ i &* keyRow))
      i &+= 1
    }
    matmul(
      work + plan.queriesAt, keyRow, work + plan.keysAt, keyRow, rows: rows, outputs: count, inputs: shape.queryDim,
      to: scores, width, work)
    i = 0
    while i < rows {
      let factor = share(
        scores + i &* width, row &+ i, head, first: first, count: count,
        to: work + (plan.sharesAt &+ i &* width &* plan.elementBytes))
      if factor != 1 { scale(result(row &+ i, head), factor) }
      i &+= 1
    }
    matmul(
      work + plan.sharesAt, width &* plan.elementBytes, work + plan.valuesAt, width &* plan.elementBytes, rows: rows,
      outputs: shape.value, inputs: count, to: out, shape.value, work)
    i = 0
    while i < rows {
      add(out + i &* shape.value, to: result(row &+ i, head))
      i &+= 1
    }
  }

  /// Scores of a row [count] become its shares; returns what its output so far is to be multiplied with.
  private func share(
    _ line: UnsafePointer<Float>, _ row: Int, _ head: Int, first: Int, count: Int, to shares: UnsafeMutableRawPointer
  ) -> Float {
    let state = state(row, head)
    let chosen = indices == nil ? nil : seen(row)
    let most = indices == nil ? max(0, min(count, job.visible.at(row) &- first)) : count
    (shares + most &* plan.elementBytes).initializeMemory(
      as: UInt8.self, repeating: 0, count: (count &- most) &* plan.elementBytes)
    guard most > 0 else { return 1 }
    return kernels.pointee.attend_row(
      plan.type, line, chosen, Int32(truncatingIfNeeded: most), shape.scale, state, state + 1, shares)
  }

  private func scale(_ line: UnsafeMutablePointer<Float>, _ factor: Float) {
    var i = 0
    while i < shape.value {
      line[i] *= factor
      i &+= 1
    }
  }

  private func add(_ part: UnsafePointer<Float>, to line: UnsafeMutablePointer<Float>) {
    var i = 0
    while i < shape.value {
      line[i] += part[i]
      i &+= 1
    }
  }

  /// The first place of a row's ascending keys (then -1) that holds `key` or more, or none.
  private func lowerBound(_ list: UnsafePointer<Int32>, _ count: Int, _ key: Int) -> Int {
    var (low, high) = (0, count)
    while low < high {
      let middle = (low &+ high) &>> 1
      if list[middle] < 0 || Int(list[middle]) >= key { high = middle } else { low = middle &+ 1 }
    }
    return low
  }

  func count(_ sample: inout Sample) {
    let sums = job.visible.sums(rows: job.queries, k: indices?.shape[1] ?? 0)
    let pair = UInt64(truncatingIfNeeded: 2 &* shape.heads &* (shape.queryDim &+ shape.value))
    let up = UInt64(truncatingIfNeeded: 2 &* shape.heads &* shape.latent &* (shape.nope &+ shape.value))
    sample.queries = UInt64(truncatingIfNeeded: job.queries)
    sample.keysDense = UInt64(truncatingIfNeeded: sums.visible)
    sample.keysAttended = UInt64(truncatingIfNeeded: indices == nil ? sums.visible : sums.selected)
    // Every visible pair is multiplied, and every latent expanded: as without a selection.
    sample.keysExpanded = sample.keysDense
    sample.flops =
      UInt64(truncatingIfNeeded: sums.visible) &* pair &+ UInt64(truncatingIfNeeded: job.keys.count) &* up
    sample.denseFlops = sample.flops
    let around = UInt64(truncatingIfNeeded: q.count &* 4 &+ out.count &* 4)
    sample.bytes = UInt64(truncatingIfNeeded: job.keys.count &* job.keys.bytesPerRow) &+ around
    sample.denseBytes = sample.bytes
  }
}
