// Runs the operators at given shapes over cold memory and times them: what a machine's profile is fitted to. One block
// of memory, larger than most caches, serves as BF16 latents, INT8 index keys and weights alike; every call reads
// another part of it, as the layers of a model do. Refuses nothing and decides nothing: it only measures.

package import TamisRuntime

package final class Trial {
  package struct Shape: Sendable {
    package var heads: Int
    package var keyDim: Int
    package var valueDim: Int
    package var indexHeads: Int
    package var indexDim: Int
    package var topK: Int
    package init(heads: Int, keyDim: Int, valueDim: Int, indexHeads: Int, indexDim: Int, topK: Int) {
      self.heads = heads
      self.keyDim = keyDim
      self.valueDim = valueDim
      self.indexHeads = indexHeads
      self.indexDim = indexDim
      self.topK = topK
    }
  }

  package struct Timing: Sendable {
    /// Seconds of the fastest call, and of a mean one over it.
    package let seconds: Double
    package let spread: Double
  }

  private static let bytes = 256 << 20
  private static let longest: UInt64 = 120_000_000
  private static let mostRounds = 24

  private let context: Context
  private let shape: Shape
  private let rows: Int
  private let token: CallToken
  private let block: Scratch
  private let operands: Scratch
  private let queryBytes: Int
  private let indexQueryBytes: Int

  /// For calls of `rows` query rows.
  package init(_ context: Context, _ shape: Shape, rows: Int) throws(TamisError) {
    self.context = context
    self.shape = shape
    self.rows = rows
    token = context.beginCall()
    queryBytes = try Size.roundUp(Size.product(rows, shape.heads, shape.keyDim, 2), to: 64)
    indexQueryBytes = try Size.roundUp(Size.product(rows, shape.indexHeads, Size.sum(shape.indexDim, 1), 4), to: 64)
    let outBytes = try Size.roundUp(Size.product(rows, shape.heads, shape.valueDim, 4), to: 64)
    let indexBytes = try Size.roundUp(Size.product(rows, shape.topK, 4), to: 64)
    let needed = try Size.sum(queryBytes, indexQueryBytes, outBytes, indexBytes)
    operands = try context.borrowScratch(bytes: needed)
    block = try Trial.borrow(context, releasing: operands)
    Trial.fill(block.pointer, words: Trial.bytes / 8)
    Trial.fill(operands.pointer, words: (queryBytes &+ indexQueryBytes) / 8)
  }

  private static func borrow(_ context: Context, releasing other: Scratch) throws(TamisError) -> Scratch {
    do {
      return try context.borrowScratch(bytes: Trial.bytes)
    } catch {
      context.returnScratch(other)
      throw error
    }
  }

  deinit {
    context.returnScratch(operands)
    context.returnScratch(block)
    context.trim()
  }

  /// Every 16 bits are a BF16 number of size 0.5 to 2; as bytes and as floats they are tame, too.
  private static func fill(_ memory: UnsafeMutableRawPointer, words: Int) {
    let values = memory.assumingMemoryBound(to: UInt64.self)
    var state: UInt64 = 0x9E37_79B9_7F4A_7C15
    for i in 0..<words {
      state ^= state &<< 13
      state ^= state &>> 7
      state ^= state &<< 17
      values[i] = state & 0x80FF_80FF_80FF_80FF | 0x3F00_3F00_3F00_3F00
    }
  }

  /// Calls with the number of the call until time or rounds are used up.
  @inline(never)
  private func time(_ body: (Int) throws(TamisError) -> Void) throws(TamisError) -> Timing {
    var best = UInt64.max
    var spent: UInt64 = 0
    var rounds = 0
    try body(0)
    while rounds == 0 || (rounds < Trial.mostRounds && spent < Trial.longest) {
      try context.checkCancelled(token)
      let began = now()
      rounds &+= 1
      try body(rounds)
      let taken = max(1, now() &- began)
      best = min(best, taken)
      spent &+= taken
    }
    return Timing(seconds: Double(best) * 1e-9, spread: Double(spent) / Double(rounds) / Double(best))
  }

  /// A single thread's own processor time, which other programs on the machine do not add to; else the wall's.
  private func now() -> UInt64 { context.threads == 1 ? Clock.threadCPU() : Clock.wall() }

  /// Where call `number` reads `bytes` bytes.
  private func window(_ number: Int, bytes: Int) -> UnsafeMutableRawPointer {
    let lines = bytes &>> 6 &+ 1
    let places = max((Trial.bytes &>> 6) &- lines, 1)
    return block.pointer + (number &* lines) % places &* 64
  }

  private func tensor(
    _ data: UnsafeMutableRawPointer, _ dtype: DType, _ shape: SIMD4<Int>, rank: Int
  ) throws(TamisError) -> Tensor {
    try Tensor(
      "trial", data: data, dtype: dtype.rawValue, rank: rank, shape: shape, stride: SIMD4(0, 0, 0, 0), scale: nil,
      block: 0)
  }
}

// MARK: The operators

extension Trial {
  /// Keys that fit the block at these shapes.
  package var mostKeys: Int { Trial.bytes / max(shape.keyDim &* 2, shape.indexDim, 1) }

  /// select of topK over `keys` INT8 index keys.
  package func select(keys: Int) throws(TamisError) -> Timing {
    let q = try tensor(
      operands.pointer + queryBytes, .f32, SIMD4(rows, shape.indexHeads, shape.indexDim, 0), rank: 3)
    let w = try tensor(q.data + q.extent, .f32, SIMD4(rows, shape.indexHeads, 0, 0), rank: 2)
    let indices = try self.indices(shape.topK)
    return try time { number throws(TamisError) in
      let key = try tensor(
        window(number, bytes: keys &* shape.indexDim), .i8, SIMD4(keys, shape.indexDim, 0, 0), rank: 2)
      let indexer = try Indexer(
        context, q: q, w: w, keyDType: .i8, keyDim: shape.indexDim, keyScaleBlock: shape.indexDim)
      let visible = try Visible(counts: nil, all: true, queries: rows, keys: keys)
      let job = IndexJob(keys: Rows(key), firstQuery: 0, queries: rows, visible: visible)
      try Select.run(context, indexer, jobs: [job], k: shape.topK, indices: indices, topScores: nil)
    }
  }

  /// attend over all of `keys` latents.
  package func dense(keys: Int) throws(TamisError) -> Timing { try attend(keys: keys, chosen: nil) }

  /// attend over `chosen` of `keys` latents, spread evenly, other ones for each row.
  package func sparse(chosen: Int, keys: Int) throws(TamisError) -> Timing {
    let indices = try self.indices(chosen)
    let values = indices.data.assumingMemoryBound(to: Int32.self)
    for row in 0..<rows {
      for i in 0..<chosen {
        let place = (i &* keys &+ row &* keys / max(rows, 1)) / max(chosen, 1)
        values[row &* chosen &+ i] = Int32(truncatingIfNeeded: min(place, keys &- 1))
      }
    }
    return try attend(keys: keys, chosen: indices)
  }

  private func indices(_ k: Int) throws(TamisError) -> Tensor {
    let out = try Size.roundUp(Size.product(rows, shape.heads, shape.valueDim, 4), to: 64)
    return try tensor(
      operands.pointer + (queryBytes &+ indexQueryBytes &+ out), .i32, SIMD4(rows, k, 0, 0), rank: 2)
  }

  private func attend(keys: Int, chosen: Tensor?) throws(TamisError) -> Timing {
    let q = try tensor(operands.pointer, .bf16, SIMD4(rows, shape.heads, shape.keyDim, 0), rank: 3)
    let out = try tensor(
      operands.pointer + (queryBytes &+ indexQueryBytes), .f32, SIMD4(rows, shape.heads, shape.valueDim, 0), rank: 3)
    let attention = try Attention(
      context, q: q, kvHeads: 1, keyDim: shape.keyDim, valueDim: shape.valueDim, keyDType: .bf16, scale: 0, sink: nil)
    let visible = try Visible(counts: nil, all: true, queries: rows, keys: keys)
    return try time { number throws(TamisError) in
      let bytes = keys &* shape.keyDim &* 2
      let key = try tensor(window(number, bytes: bytes), .bf16, SIMD4(keys, 1, shape.keyDim, 0), rank: 3)
      let job = AttendJob(keys: Rows(key), values: nil, firstQuery: 0, queries: rows, visible: visible)
      try Attend.run(context, attention, q: q, jobs: [job], indices: chosen, out: out, lse: nil)
    }
  }

  /// Attention of the last `rows` of `keys` tokens in the expanded form, keys and values of each head made from latents.
  package func expanded(_ shape: ExpandedShape, rows: Int, keys: Int) throws(TamisError) -> Timing {
    let (queryRow, outRow) = try (
      Size.product(shape.heads, shape.queryDim), Size.product(shape.heads, shape.value)
    )
    let memory = try context.borrowScratch(bytes: Size.product(rows, Size.sum(queryRow, outRow), 4))
    defer { context.returnScratch(memory) }
    Trial.fill(memory.pointer, words: rows &* queryRow / 2)
    let q = try tensor(memory.pointer, .f32, SIMD4(rows, shape.heads, shape.queryDim, 0), rank: 3)
    let out = try tensor(memory.pointer + q.extent, .f32, SIMD4(rows, outRow, 0, 0), rank: 2)
    let upRows = try Size.product(shape.heads, Size.sum(shape.nope, shape.value))
    let upBytes = try Size.product(upRows, shape.latent, 2)
    return try time { number throws(TamisError) in
      let up = try tensor(window(number, bytes: upBytes), .bf16, SIMD4(upRows, shape.latent, 0, 0), rank: 2)
      let latents = window(number &* 7 &+ 3, bytes: keys &* shape.keyDim &* 2)
      let key = try tensor(latents, .bf16, SIMD4(keys, 1, shape.keyDim, 0), rank: 3)
      let visible = try Visible(counts: nil, all: false, queries: rows, keys: keys)
      let job = AttendJob(keys: Rows(key), values: nil, firstQuery: 0, queries: rows, visible: visible)
      try ExpandedAttention.run(context, shape, q: q, up: up, job: job, indices: nil, out: out)
    }
  }

  /// Do the weights of that fit the block?
  package func holds(_ shape: ExpandedShape, keys: Int) throws(TamisError) -> Bool {
    let up = try Size.product(shape.heads, Size.sum(shape.nope, shape.value), shape.latent, 2)
    return try max(up, Size.product(keys, shape.keyDim, 2)) <= Trial.bytes / 2
  }

  /// A linear layer of BF16 weights that lie in memory, others in each call.
  package func cold(inputs: Int, outputs: Int) throws(TamisError) -> Timing {
    let bytes = try Size.product(inputs, outputs, 2)
    return try linear(inputs: inputs, outputs: outputs) { number in window(number, bytes: bytes) }
  }

  /// A linear layer of BF16 weights that stay in the cache: its arithmetic alone.
  package func linear(inputs: Int, outputs: Int) throws(TamisError) -> Timing {
    try linear(inputs: inputs, outputs: outputs) { _ in block.pointer }
  }

  private func linear(
    inputs: Int, outputs: Int, weights: (Int) -> UnsafeMutableRawPointer
  ) throws(TamisError) -> Timing {
    let needed = try Size.product(rows, Size.sum(inputs, outputs), 4)
    let memory = try context.borrowScratch(bytes: needed)
    defer { context.returnScratch(memory) }
    Trial.fill(memory.pointer, words: needed / 8)
    let x = try tensor(memory.pointer, .f32, SIMD4(rows, inputs, 0, 0), rank: 2)
    let out = try tensor(memory.pointer + x.extent, .f32, SIMD4(rows, outputs, 0, 0), rank: 2)
    return try time { number throws(TamisError) in
      let weight = try tensor(weights(number), .bf16, SIMD4(outputs, inputs, 0, 0), rank: 2)
      try Project.run(context, x: x, weight: weight, out: out)
    }
  }
}
