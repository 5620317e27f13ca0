// A decoder opened from a checkpoint directory: checked configuration, weights, and evaluate, which extends sequences
// of a cache by tokens and gives logits. It refuses caches of another shape, tokens outside the vocabulary and
// contexts beyond what the model was made for; a call that fails leaves every sequence as long as it was.

package import TamisCache
package import TamisFormats
package import TamisOperators
package import TamisRuntime

package struct ModelOptions: Sendable {
  /// Every matrix as F32 in memory and fp32 products: for comparing with an fp32 implementation. False: weights stay
  /// mapped in the type they are stored in; bf16 and 8-bit ones are multiplied in bf16.
  package var widensWeights = false
  /// Rows of a step: memory for activations against speed. The result is the same. 0: what 128 MiB hold, 16 to 512.
  package var stepRows = 0
  /// Long prompts may take the expanded form of attention where it is cheaper. It rounds differently, so the last bits
  /// of their logits depend on how a prompt is cut into calls (not on what is evaluated beside it). False: any cut gives
  /// the same bits.
  package var mayExpand = true

  package init() {}
}

package final class Model: @unchecked Sendable {
  package let config: ModelConfig
  let context: Context
  private let options: ModelOptions
  private let store: WeightStore
  private let embeddings: Tensor  // [vocabulary, hidden]
  private let layers: [LayerWeights]
  private let finalNorm: UnsafePointer<Float>  // [hidden]
  private let head: Tensor  // [vocabulary, hidden]
  private let frequencies: [Float]  // [rope / 2]

  package convenience init(
    directory: String, _ context: Context, _ options: ModelOptions = ModelOptions()
  ) throws(TamisError) {
    let config = try ModelConfig(path: "\(directory)/config.json", context)
    try self.init(config, Checkpoint(directory: directory, context), context, options)
  }

  package init(
    _ config: ModelConfig, _ checkpoint: Checkpoint, _ context: Context, _ options: ModelOptions = ModelOptions()
  ) throws(TamisError) {
    guard options.stepRows >= 0, options.stepRows <= 1 << 16 else {
      throw TamisError(.argument, "options: step rows are 0 to 65536")
    }
    self.config = config
    self.context = context
    self.options = options
    store = WeightStore(context, checkpoint, widens: options.widensWeights, blockScaled: config.blockScaled)
    embeddings = try store.matrix("model.embed_tokens.weight", config.vocabulary, config.hidden)
    var layers: [LayerWeights] = []
    for layer in 0..<config.layers { layers.append(try LayerWeights(store, config, layer: layer)) }
    self.layers = layers
    finalNorm = try store.vector("model.norm.weight", config.hidden)
    head =
      config.tiedEmbeddings
      ? embeddings : try store.matrix("lm_head.weight", config.vocabulary, config.hidden)
    frequencies = config.rotary.frequencies(dims: config.rope)
  }

  // MARK: Caches

  /// The options of a cache for this model; dtypes, page size and limit may be changed.
  package var cacheOptions: CacheOptions {
    var options = CacheOptions()
    options.layers = config.layers
    options.kvHeads = 1
    options.keyDim = config.keyDim
    options.valueDim = config.latent
    options.ownValues = false
    if let index = config.index {
      options.indexDim = index.dim
      options.indexDType = .i8
    } else {
      options.indexDType = nil
    }
    return options
  }

  private func require(_ cache: Cache) throws(TamisError) {
    let (given, mine) = (cache.options, cacheOptions)
    guard given.layers == mine.layers, given.kvHeads == 1, given.keyDim == mine.keyDim,
      given.valueDim == mine.valueDim, !given.ownValues, (given.indexDType == nil) == (mine.indexDType == nil),
      mine.indexDType == nil || given.indexDim == mine.indexDim
    else { throw TamisError(.argument, "cache: has another shape than the model's") }
  }

  /// What evaluate would refuse of a cache and of options.
  package func check(_ cache: Cache, _ options: EvaluateOptions) throws(TamisError) {
    try require(cache)
    _ = try Choice(options, config, longest: config.maxPositions)
  }

  // MARK: Evaluating

  /// Extends each sequence by its tokens. logits F32 as `options.rows` says, or nil: none. A match on another thread
  /// finds tokens whose rows all layers have written, never others.
  package func evaluate(
    _ requests: [Request], _ options: EvaluateOptions = EvaluateOptions(), logits: Tensor?
  ) throws(TamisError) {
    let lengths = try check(requests, options.rows, logits: logits)
    let longest = zip(requests, lengths).reduce(0) { max($0, $1.0.tokens.count &+ $1.1) }
    let choice = try Choice(options, config, longest: longest)
    let traces = try Traces(requests, layers: config.layers)
    do {
      try evaluate(requests, lengths, options.rows, choice, logits)
      traces.end(failed: false)
    } catch {
      traces.end(failed: true)
      // Truncation to a length that was is refused only if another thread uses the sequence against its contract.
      for (request, length) in zip(requests, lengths) { try? request.sequence.truncate(Int64(length)) }
      throw error
    }
  }

  /// Lengths before the call.
  private func check(_ requests: [Request], _ rows: LogitRows, logits: Tensor?) throws(TamisError) -> [Int] {
    guard let first = requests.first else { throw TamisError(.argument, "requests: none") }
    try require(first.sequence.cache)
    var lengths: [Int] = []
    var total = 0
    for (number, request) in requests.enumerated() {
      guard request.sequence.cache === first.sequence.cache else {
        throw TamisError(.argument, "sequence \(number): a sequence of another cache")
      }
      for earlier in requests.prefix(number) where earlier.sequence === request.sequence {
        throw TamisError(.argument, "sequence \(number): a sequence that is named twice")
      }
      guard !request.tokens.isEmpty else { throw TamisError(.argument, "sequence \(number): no tokens") }
      for (i, id) in request.tokens.enumerated() where id < 0 || Int(id) >= config.vocabulary {
        throw TamisError(
          .argument, "sequence \(number): token \(i) is \(id), expected 0 to \(config.vocabulary &- 1)")
      }
      let length = try request.sequence.length()
      guard request.tokens.count <= config.maxPositions &- length else {
        throw TamisError(
          .argument,
          """
          sequence \(number): \(length) + \(request.tokens.count) tokens, \
          the model has \(config.maxPositions) positions
          """)
      }
      lengths.append(length)
      total = try Size.sum(total, request.tokens.count)
    }
    guard let logits else { return lengths }
    let wanted = rows == .all ? total : requests.count { $0.wantsLogits }
    guard logits.rank == 2, logits.dtype == .f32, logits.shape[0] == wanted, logits.shape[1] == config.vocabulary
    else { throw TamisError(.argument, "logits: expected F32 [rows, \(config.vocabulary)]") }
    try logits.requireWritable("logits")
    return lengths
  }

  private func evaluate(
    _ requests: [Request], _ lengths: [Int], _ rows: LogitRows, _ choice: Choice, _ logits: Tensor?
  ) throws(TamisError) {
    guard let cache = requests.first?.sequence.cache else { return }
    let token = context.beginCall()
    let total = requests.reduce(0) { $0 &+ $1.tokens.count }
    let traces = requests.contains { $0.trace != nil }
    let rowsAtOnce = min(total, try stepRows(topK: choice.k, traces: traces))
    let space = try Workspace(context, config, rows: rowsAtOnce, topK: choice.k, traces: traces)
    var ends: [Int] = []
    for (request, length) in zip(requests, lengths) {
      ends.append(try end(of: request, length: length, cache, path: choice))
    }
    var work = Work(requests: requests, ends: ends, lengths: lengths)
    var written = 0
    while true {
      let (segments, finished) = work.next(rows: space.rows)
      guard !segments.isEmpty else { return }
      for segment in segments { try segment.sequence.extend(nil, segment.tokens.count) }
      let step = Step(context, config, space, cache, segments, token: token, choice)
      try Recorder.dividing(segments.map { $0.part() }) { () throws(TamisError) in
        try step.run(embeddings: embeddings, layers: layers, frequencies: frequencies, store: store)
      }
      for segment in segments { try segment.sequence.name(first: segment.first, segment.tokens) }
      guard let logits else { continue }
      let wanted = rows == .all ? Array(0..<step.rows) : finished
      guard !wanted.isEmpty else { continue }
      let parts = rows == .all ? segments.map { $0.part() } : payers(of: finished, segments)
      try Recorder.dividing(parts) { () throws(TamisError) in
        try project(wanted, space, to: logits, first: written)
      }
      written &+= wanted.count
    }
  }

  private func end(
    of request: Request, length: Int, _ cache: Cache, path choice: Choice
  ) throws(TamisError) -> Int {
    if let end = request.expandedEnd { return end }
    return request.trace == nil
      ? try expandedEnd(request.tokens.count, behind: length, cache, choice.options) : 0
  }

  /// Of `count` tokens behind `length` others, given in one call: the position from which on rows take the absorbed
  /// form of attention. It depends on nothing else, so that neighbours change no bit.
  @inline(never)  // one copy, whoever calls
  package func expandedEnd(
    _ count: Int, behind length: Int, _ cache: Cache, _ options: EvaluateOptions
  ) throws(TamisError) -> Int {
    guard self.options.mayExpand, count >= ExpandedForm.fewestRows, let layer = layers.first,
      ExpandedAttention.takes(weight: layer.attention.keyUp.dtype, keys: cache.options.kvDType)
    else { return 0 }
    let choice = try Choice(options, config, longest: length &+ count)
    let rows = try stepRows(topK: choice.k, traces: false)
    let costs = ExpandedForm.Costs(
      context, floats: cache.options.kvDType == .f32 || cache.options.kvDType == .f16)
    return ExpandedForm.end(config, rows: min(rows, count), selected: choice.k, costs)
  }

  private func stepRows(topK: Int, traces: Bool) throws(TamisError) -> Int {
    options.stepRows > 0 ? options.stepRows : try Workspace.automaticRows(config, topK: topK, traces: traces)
  }

  /// Who pays for single rows of a step, in ascending order.
  private func payers(of rows: [Int], _ segments: [Segment]) -> [Share] {
    var parts: [Share] = []
    var end = 0
    for segment in segments {
      end &+= segment.tokens.count
      if parts.count < rows.count, rows[parts.count] < end { parts.append(segment.part(rows: 1)) }
    }
    return parts
  }

  /// Final norm and head of some rows of a step, to rows first ... of the logits.
  private func project(
    _ wanted: [Int], _ space: Workspace, to logits: Tensor, first: Int
  ) throws(TamisError) {
    for (i, row) in wanted.enumerated() {
      Normalise.rms(
        space.hidden + row &* config.hidden, gain: finalNorm, epsilon: config.normEpsilon, count: config.hidden,
        to: space.normed + i &* config.hidden)
    }
    try Project.run(
      context, x: floatView(space.normed, rows: wanted.count, columns: config.hidden), weight: head,
      out: floatView(
        logits.row(first), rows: wanted.count, columns: config.vocabulary, stride: logits.stride[0] / 4))
  }
}

/// The traces of a call, each begun once.
private struct Traces {
  private var begun: [(trace: AttentionTrace, rows: Int)] = []

  init(_ requests: [Request], layers: Int) throws(TamisError) {
    for request in requests {
      guard let trace = request.trace else { continue }
      if let i = begun.firstIndex(where: { $0.trace === trace }) {
        begun[i].rows &+= request.tokens.count
        continue
      }
      do {
        try trace.begin(layers: layers)
      } catch {
        end(failed: true)
        throw error
      }
      begun.append((trace, request.tokens.count))
    }
  }

  func end(failed: Bool) {
    for (trace, rows) in begun { trace.end(rows: failed ? nil : rows) }
  }
}

/// The tokens that are still to be evaluated, in the order of the requests.
private struct Work {
  let requests: [Request]
  /// Rows at smaller positions take the expanded form.
  let ends: [Int]
  let lengths: [Int]
  private var request = 0
  private var done = 0

  init(requests: [Request], ends: [Int], lengths: [Int]) {
    self.requests = requests
    self.ends = ends
    self.lengths = lengths
  }

  /// At most `rows` of them, and which of those rows are the last of their request.
  mutating func next(rows: Int) -> (segments: [Segment], finished: [Int]) {
    var segments: [Segment] = []
    var finished: [Int] = []
    var taken = 0
    while request < requests.count, taken < rows {
      let tokens = requests[request].tokens
      let first = lengths[request] &+ done
      let expands = first < ends[request]
      var count = min(rows &- taken, tokens.count &- done)
      if expands { count = min(count, ends[request] &- first) }
      segments.append(
        Segment(
          sequence: requests[request].sequence, request: request, trace: requests[request].trace,
          first: first, expands: expands,
          tokens: UnsafeBufferPointer(rebasing: tokens[done..<done &+ count])))
      taken &+= count
      done &+= count
      if done == tokens.count {
        if requests[request].wantsLogits { finished.append(taken &- 1) }
        request &+= 1
        done = 0
      } else if expands {
        // Its rows behind these may take the other form, which is another segment, and a step has one of a sequence.
        break
      }
    }
    return (segments, finished)
  }
}
