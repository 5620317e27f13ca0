// Where a fit begins: the best bilinear score in closed form. Of all scores r_t . M x_s one Newton step from equal
// shares minimises the divergence from the attention p:
//
//   M = E[r r']^-1 E_t[r_t (sum_s p_ts x_s - mean over what t sees of x_s)'] cov(x)^-1
//
// Its best approximation, after whitening r and x, of the rank of an index key's unturned dims is M = Q' K with q = Q r
// and k = K x. As max(0, q.k) - max(0, -q.k) = q.k, two index heads of opposite sign and weight are it; a vector c with
// c . x near one is their weight. The turned dims and the other heads stay as they are. It refuses nothing: where there
// is no closed form the parameters stay as they were.

import TamisRuntime

struct ClosedForm {
  /// Tokens of a sequence that the covariance of the hidden states is made of, at most; evenly spaced.
  private static let tokens = 512
  /// Of the largest eigenvalue, added to a covariance before it is inverted.
  private static let ridge = 1e-3
  /// Steps of the subspace iteration.
  private static let iterations = 16
  /// Wider hosts begin at random: three matrices of Double of width x width would be gigabytes.
  private static let widest = 8192

  private let context: Context
  private let shape: IndexerShape
  private let rank: Int
  private let cross: Matrix  // [features, width]
  private let query: Matrix  // [features, features]
  private let state: Matrix  // [width, width]
  private let mean: Matrix  // [width, 1]

  /// Writes the closed form of a capture into `parameters`, which are random; false: it has none, nothing is written.
  static func begin(
    _ context: Context, _ shape: IndexerShape, _ capture: Capture, _ token: CallToken, _ parameters: Floats
  ) throws(TamisError) -> Bool {
    let rank = min(shape.dim &- shape.rope, shape.features, shape.width)
    guard shape.heads >= 2, rank >= 1, max(shape.width, shape.features) <= widest else { return false }
    let form = try ClosedForm(context, shape, rank: rank)
    try form.sum(capture, token)
    guard let (q, k) = try form.factors(token) else { return false }
    return form.write(q, k, parameters.start)
  }

  private init(_ context: Context, _ shape: IndexerShape, rank: Int) throws(TamisError) {
    self.context = context
    self.shape = shape
    self.rank = rank
    cross = try Matrix(context, rows: shape.features, columns: shape.width)
    query = try Matrix(context, rows: shape.features, columns: shape.features)
    state = try Matrix(context, rows: shape.width, columns: shape.width)
    mean = try Matrix(context, rows: shape.width, columns: 1)
  }

  // MARK: Sums over a capture

  /// The four means. Products of one sequence are floats, sums over sequences doubles.
  private func sum(_ capture: Capture, _ token: CallToken) throws(TamisError) {
    let memory = try ClosedFormMemory(context, shape, capture)
    defer { memory.release(context) }
    var (rows, tokens) = (0, 0)
    for sequence in capture.sequences {
      try context.checkCancelled(token)
      differences(sequence, memory)
      let step = max(1, (sequence.tokens &+ ClosedForm.tokens &- 1) / ClosedForm.tokens)
      let some = (sequence.tokens &+ step &- 1) / step
      add(sequence.features.start, shape.features, memory.differences, shape.width, sequence.rows, memory, to: cross)
      add(
        sequence.features.start, shape.features, sequence.features.start, shape.features, sequence.rows, memory,
        to: query)
      let stride = step &* shape.width
      add(sequence.hidden.start, stride, sequence.hidden.start, stride, some, memory, to: state)
      times(some) { s in
        let x = sequence.hidden.start + s &* stride
        times(shape.width) { i in mean.start[i] += Double(x[i]) }
      }
      rows &+= sequence.rows
      tokens &+= some
    }
    cross.scale(by: 1 / Double(rows))
    query.scale(by: 1 / Double(rows))
    state.scale(by: 1 / Double(tokens))
    mean.scale(by: 1 / Double(tokens))
    times(shape.width) { i in
      times(shape.width) { j in state.row(i)[j] -= mean.start[i] * mean.start[j] }
    }
  }

  /// memory.differences [rows, width]: sum_s (p_ts - equal shares of what t sees) x_s.
  private func differences(_ sequence: CapturedSequence, _ memory: ClosedFormMemory) {
    let (kernels, stride) = (context.kernels, memory.stride)
    let tiles = (sequence.rows &+ TargetRows.tile &- 1) / TargetRows.tile
    context.parallel(count: tiles, workers: memory.workers) { tile, worker in
      let first = tile &* TargetRows.tile
      let count = min(TargetRows.tile, sequence.rows &- first)
      let (target, shares) = (memory.target(worker), memory.shares(worker))
      TargetRows.compute(kernels, sequence, count: count, scratch: target) { first &+ $0 }
      var longest = 0
      times(count) { i in longest = max(longest, sequence.visible(first &+ i)) }
      times(count) { i in
        let p = TargetRows.pointer(sequence, row: first &+ i, inTile: i, scratch: target)
        let (one, visible) = (shares + i &* stride, sequence.visible(first &+ i))
        let equal = 1 / Float(visible)
        times(visible) { s in one[s] = p[s] - equal }
        times(longest &- visible) { s in one[visible &+ s] = 0 }
      }
      accumulate(
        kernels, shares, (stride, 1), sequence.hidden.start, shape.width, rows: count, shape.width, longest, add: false,
        memory.differences + first &* shape.width, shape.width)
    }
  }

  /// to += a' b of `rows` rows; strides of rows in floats.
  private func add(
    _ a: UnsafePointer<Float>, _ aStride: Int, _ b: UnsafePointer<Float>, _ bStride: Int, _ rows: Int,
    _ memory: ClosedFormMemory, to: Matrix
  ) {
    let block = ClosedFormMemory.block
    context.parallel(count: (to.rows &+ block &- 1) / block, workers: memory.workers) { item, worker in
      let first = item &* block
      let count = min(block, to.rows &- first)
      let product = memory.product(worker)
      accumulate(
        context.kernels, a + first, (1, aStride), b, bStride, rows: count, to.columns, rows, add: false, product,
        to.columns)
      let sums = to.row(first)
      times(count &* to.columns) { i in sums[i] += Double(product[i]) }
    }
  }

  // MARK: Factors

  /// Q [features, rank] and K [width, rank], transposed; nil: a covariance has no inverse. `query` and `state` become
  /// their Cholesky factors.
  private func factors(_ token: CallToken) throws(TamisError) -> (q: Matrix, k: Matrix)? {
    guard try query.factor(ridge: ClosedForm.ridge), try state.factor(ridge: ClosedForm.ridge) else { return nil }
    let left = try Matrix(context, rows: shape.features, columns: rank)
    let right = try Matrix(context, rows: shape.width, columns: rank)
    let solved = try Matrix(context, rows: shape.width, columns: rank)
    var random = SeededRandom(seed: 0)
    times(right.count) { i in right.start[i] = Double(random.normal()) }
    right.orthonormalise(&random)
    /// left = whitened M times right, before its last whitening is undone; solved = K'.
    func forward() {
      solved.copy(right)
      state.solveTransposed(solved)
      cross.multiply(solved, to: left)
      query.solve(left)
      query.solveTransposed(left)
    }
    for _ in 0..<ClosedForm.iterations {
      try context.checkCancelled(token)
      forward()
      cross.multiplyTransposed(left, to: right)
      state.solve(right)
      right.orthonormalise(&random)
    }
    forward()
    return (left, solved)
  }

  /// c: the solution of the mean square of c . x - 1, with the covariance's ridge. Overwrites `mean`.
  private func constant() -> UnsafePointer<Double> {
    // (S + m m')^-1 m = S^-1 m / (1 + m' S^-1 m), and m' S^-1 m = |L^-1 m|^2.
    state.solve(mean)
    var square = 0.0
    times(shape.width) { i in square += mean.start[i] * mean.start[i] }
    state.solveTransposed(mean)
    mean.scale(by: 1 / (1 + square))
    return UnsafePointer(mean.start)
  }

  /// False: something is too large for a float, and nothing was written.
  private func write(_ q: Matrix, _ k: Matrix, _ parameters: UnsafeMutablePointer<Float>) -> Bool {
    let c = constant()
    let scale = (Double(shape.heads) * Double(shape.dim)).squareRoot()
    q.scale(by: scale)
    guard isFinite(q.start, q.count), isFinite(k.start, k.count), isFinite(c, shape.width) else { return false }
    times(shape.features) { f in
      let both = parameters + (shape.queryAt &+ f &* shape.queryWidth)
      times(2 &* shape.dim) { i in both[i] *= 0.3 }
      times(rank) { i in
        both[shape.rope &+ i] = Float(q.row(f)[i])
        both[shape.dim &+ shape.rope &+ i] = -Float(q.row(f)[i])
      }
    }
    times(shape.width) { i in
      let key = parameters + (shape.keyAt &+ i &* shape.dim &+ shape.rope)
      times(rank) { j in key[j] = Float(k.row(i)[j]) }
      let weights = parameters + (shape.weightAt &+ i &* shape.paddedHeads)
      (weights[0], weights[1]) = (Float(c[i]), -Float(c[i]))
    }
    return true
  }
}

/// All of `count` numbers are finite as floats.
private func isFinite(_ numbers: UnsafePointer<Double>, _ count: Int) -> Bool {
  var worst = 0.0
  var sound = true
  times(count) { i in
    worst = max(worst, abs(numbers[i]))
    sound = sound && numbers[i] == numbers[i]
  }
  return sound && worst < Double(Float.greatestFiniteMagnitude)
}

/// The working memory of the sums: one borrowed block, cut once for the longest sequence and the most rows.
private struct ClosedFormMemory {
  /// Rows of a product at a time.
  static let block = 32

  let workers: Int
  let stride: Int
  let differences: UnsafeMutablePointer<Float>  // [rows, width]
  private let workerStart: UnsafeMutablePointer<Float>
  private let targetFloats: Int
  private let shareFloats: Int
  private let workerFloats: Int
  private let scratch: Scratch

  init(_ context: Context, _ shape: IndexerShape, _ capture: Capture) throws(TamisError) {
    let sizes = try StepMemory.sizes(capture)
    workers = context.threads
    stride = paddedStride(sizes.tokens)
    targetFloats = try Size.roundUp(sizes.target, to: 16)
    shareFloats = try Size.product(TargetRows.tile, stride)
    let product = try Size.product(ClosedFormMemory.block, max(shape.width, shape.features))
    workerFloats = try Size.sum(targetFloats, shareFloats, product)
    let all = try Size.roundUp(Size.product(sizes.rows, shape.width), to: 16)
    let bytes = try Size.product(Size.sum(all, Size.product(workers, workerFloats)), 4)
    scratch = try context.borrowScratch(bytes: bytes)
    differences = scratch.pointer.assumingMemoryBound(to: Float.self)
    workerStart = differences + all
  }

  func release(_ context: Context) { context.returnScratch(scratch) }

  /// What TargetRows needs.
  func target(_ worker: Int) -> UnsafeMutablePointer<Float> { workerStart + worker &* workerFloats }
  /// [tile, stride]
  func shares(_ worker: Int) -> UnsafeMutablePointer<Float> { target(worker) + targetFloats }
  /// [block, width or features]
  func product(_ worker: Int) -> UnsafeMutablePointer<Float> { shares(worker) + shareFloats }
}
