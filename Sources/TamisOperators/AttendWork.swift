// Runs the plan of an attend call: packs queries, finds the rows of each chunk (expanding those the kernels cannot
// read where they lie), joins partial results in chunk order, divides by the softmax's denominator.

import Glibc
import TamisKernels
import TamisRuntime

/// (maximum, sum, unnormalised output) of a unit's columns.
private struct Result {
  let out: UnsafeMutablePointer<Float>  // [columns, valueDim]
  let max: UnsafeMutablePointer<Float>  // [columns]
  let sum: UnsafeMutablePointer<Float>  // [columns]
}

/// A unit: query rows first ..< first + rows of a job, over one key head.
private struct Unit {
  let job: AttendJob
  let keys: Rows
  let values: Rows?
  let first: Int
  let rows: Int
  let kvHead: Int

  /// The row of q and out.
  func query(_ i: Int) -> Int { job.firstQuery &+ first &+ i }
}

/// The keys of one query row: all up to `count` (dense), or those in `list`.
private struct KeyList {
  let count: Int
  let list: UnsafePointer<Int32>?
}

struct AttendWork {
  let context: Context
  let token: CallToken
  let shape: Attention
  let plan: AttendPlan
  let jobs: [AttendJob]
  let scratch: UnsafeMutableRawPointer
  let q: Tensor
  let indices: Tensor?
  let out: Tensor
  let lse: Tensor?

  private var kernels: UnsafePointer<tk_table> { shape.kernels }
  private var units: Int { plan.groups &* shape.kvHeads }

  // MARK: Memory areas

  private struct Work {
    let operands: UnsafeMutableRawPointer
    let keys: UnsafeMutableRawPointer
    let values: UnsafeMutableRawPointer
    let list: UnsafeMutablePointer<Int32>
    let kernel: UnsafeMutableRawPointer
    let row: UnsafeMutablePointer<Float>
    let keyRows: UnsafeMutablePointer<UnsafeRawPointer?>
    let valueRows: UnsafeMutablePointer<UnsafeRawPointer?>
  }

  private func work(_ worker: Int) -> Work {
    let m = plan.memory
    let operands = scratch + worker &* m.workBytes
    let keys = operands + m.operandBytes
    let values = keys + m.keyBytes
    let list = values + m.valueBytes
    let kernel = list + m.listBytes
    let row = kernel + m.kernelBytes
    let rows = (row + m.rowBytes).assumingMemoryBound(to: UnsafeRawPointer?.self)
    return Work(
      operands: operands, keys: keys, values: values, list: list.assumingMemoryBound(to: Int32.self), kernel: kernel,
      row: row.assumingMemoryBound(to: Float.self), keyRows: rows, valueRows: rows + Attend.chunk)
  }

  private func result(_ slot: Int) -> Result {
    let memory = scratch + (plan.workers &* plan.memory.workBytes &+ slot &* plan.memory.resultBytes)
    let out = memory.assumingMemoryBound(to: Float.self)
    let max = out + plan.columns &* shape.valueDim
    return Result(out: out, max: max, sum: max + plan.columns)
  }

  private func packed(_ slot: Int) -> UnsafeMutableRawPointer {
    let results = plan.splits ? plan.waveChunks &+ 1 : plan.workers &* 2
    return scratch
      + (plan.workers &* plan.memory.workBytes &+ results &* plan.memory.resultBytes &+ slot &* plan.memory.packedBytes)
  }

  // MARK: Units

  private func unit(_ number: Int) -> Unit {
    var left = number / shape.kvHeads
    let kvHead = number &- left &* shape.kvHeads
    var found = jobs[0]
    for job in jobs {
      let groups = (job.queries &+ plan.groupQueries &- 1) / plan.groupQueries
      found = job
      if left < groups { break }
      left &-= groups
    }
    let first = left &* plan.groupQueries
    return Unit(
      job: found, keys: found.keys.head(kvHead), values: found.values?.head(kvHead), first: first,
      rows: min(plan.groupQueries, found.queries &- first), kvHead: kvHead)
  }

  /// The keys of row i of a unit; a sparse row's list is copied without its -1.
  private func keyList(_ unit: Unit, _ i: Int, _ work: Work) -> KeyList {
    guard let indices else { return KeyList(count: unit.job.visible.at(unit.first &+ i), list: nil) }
    let row = indices.row(unit.query(i)).assumingMemoryBound(to: Int32.self)
    var count = 0
    for j in 0..<indices.shape[1] {
      work.list[count] = row[j]
      count &+= row[j] >= 0 ? 1 : 0
    }
    return KeyList(count: count, list: UnsafePointer(work.list))
  }

  /// Columns `begin ..< end` of row i as kernel operands (column c is head c of the key head's group).
  private func pack(_ unit: Unit, rows: Range<Int>, columns: Range<Int>, _ work: Work, to packed: UnsafeMutableRawPointer)
  {
    let perRow = columns.count
    let bytes = shape.keyDim &* shape.elementBytes
    if shape.readsDirectly(q.dtype), rows.count == 1 {
      let head = unit.kvHead &* shape.headsPerKV &+ columns.lowerBound
      kernels.pointee.attend_pack_query(
        shape.type, q.row(unit.query(rows.lowerBound)) + head &* q.stride[1], q.stride[1],
        Int32(truncatingIfNeeded: perRow), Int32(truncatingIfNeeded: shape.keyDim), packed)
      return
    }
    for i in rows {
      for c in columns {
        let head = unit.kvHead &* shape.headsPerKV &+ c
        let from = UnsafeRawPointer(q.row(unit.query(i)) + head &* q.stride[1])
        let to = work.operands + ((i &- rows.lowerBound) &* perRow &+ c &- columns.lowerBound) &* bytes
        operand(from, to: to, work)
      }
    }
    kernels.pointee.attend_pack_query(
      shape.type, work.operands, bytes, Int32(truncatingIfNeeded: rows.count &* perRow),
      Int32(truncatingIfNeeded: shape.keyDim), packed)
  }

  private func operand(_ from: UnsafeRawPointer, to: UnsafeMutableRawPointer, _ work: Work) {
    if shape.readsDirectly(q.dtype) {
      to.copyMemory(from: from, byteCount: shape.keyDim &* shape.elementBytes)
    } else if shape.type == Int32(TK_F32) {
      loadFloats(q.dtype, from, nil, 1, shape.keyDim, to: to.assumingMemoryBound(to: Float.self), kernels)
    } else {
      // The kernel's scratch is free here and holds at least a row of floats.
      let floats = work.row
      var done = 0
      while done < shape.keyDim {
        let n = min(shape.valueDim, shape.keyDim &- done)
        loadFloats(q.dtype, from + done &* q.dtype.bytes, nil, 1, n, to: floats, kernels)
        kernels.pointee.bf16_from_f32(floats, Int64(n), (to + done &* 2).assumingMemoryBound(to: UInt16.self))
        done &+= n
      }
    }
  }

  /// Finds keys first ..< first + count of a row's list, and runs the kernel over them for packed columns.
  private func attend(
    _ unit: Unit, _ list: KeyList, first: Int, count: Int, packed: UnsafeMutableRawPointer, columns: Int,
    at column: Int, into result: Result, _ work: Work
  ) {
    for i in 0..<count {
      let s = list.list.map { Int($0[first &+ i]) } ?? first &+ i
      if plan.memory.expandsKeys {
        work.keyRows[i] = shape.operand(unit.keys, s, to: work.keys + i &* shape.keyDim &* shape.elementBytes)
      } else {
        work.keyRows[i] = unit.keys.row(s)
      }
      guard let values = unit.values else { continue }
      if plan.memory.expandsValues {
        work.valueRows[i] = shape.operand(values, s, to: work.values + i &* shape.valueDim &* shape.elementBytes)
      } else {
        work.valueRows[i] = values.row(s)
      }
    }
    kernels.pointee.attend_chunk(
      shape.type, packed, Int32(truncatingIfNeeded: columns), Int32(truncatingIfNeeded: shape.keyDim),
      Int32(truncatingIfNeeded: shape.valueDim), work.keyRows, unit.values == nil ? work.keyRows : work.valueRows,
      Int32(truncatingIfNeeded: count), shape.scale, result.out + column &* shape.valueDim, result.max + column,
      result.sum + column, work.kernel)
  }

  private func clear(_ result: Result, columns: Range<Int>) {
    for c in columns {
      result.max[c] = -.infinity
      result.sum[c] = 0
    }
    (result.out + columns.lowerBound &* shape.valueDim).update(repeating: 0, count: columns.count &* shape.valueDim)
  }

  private func join(_ total: Result, _ part: Result, columns: Range<Int>) {
    let c = columns.lowerBound
    kernels.pointee.attend_join(
      total.out + c &* shape.valueDim, total.max + c, total.sum + c, part.out + c &* shape.valueDim, part.max + c,
      part.sum + c, Int32(truncatingIfNeeded: columns.count), Int32(truncatingIfNeeded: shape.valueDim))
  }

  // MARK: Whole units, one for each thread at a time

  func runWhole() -> UInt64 {
    context.parallel(count: units, workers: plan.workers) { number, worker in
      runUnit(unit(number), work(worker), packed(worker), result(2 &* worker), result(2 &* worker &+ 1))
    }
  }

  private func runUnit(
    _ unit: Unit, _ work: Work, _ packed: UnsafeMutableRawPointer, _ total: Result, _ part: Result
  ) {
    let perRow = shape.headsPerKV
    let lists = unit.rows == 1 ? keyList(unit, 0, work) : KeyList(count: 0, list: nil)
    var longest = 0
    var shortest = Int.max
    for i in 0..<unit.rows {
      let count = unit.rows == 1 ? lists.count : unit.job.visible.at(unit.first &+ i)
      longest = max(longest, count)
      shortest = min(shortest, count)
    }
    if shortest == 0 { clear(total, columns: 0..<unit.rows &* perRow) }
    var packedRows = 0..<0
    var first = 0
    while first < longest {
      guard !context.cancelled(token) else { return }
      let end = first &+ Attend.chunk
      if shortest >= end || shortest == longest {
        if packedRows != 0..<unit.rows {
          packedRows = 0..<unit.rows
          pack(unit, rows: packedRows, columns: 0..<perRow, work, to: packed)
        }
        let list = unit.rows == 1 ? lists : KeyList(count: shortest, list: nil)
        run(unit, list, first, min(end, longest) &- first, packed, 0..<unit.rows &* perRow, total, part, work)
      } else {
        for i in 0..<unit.rows {
          let count = min(end, unit.job.visible.at(unit.first &+ i)) &- first
          if count <= 0 { continue }
          packedRows = i..<i &+ 1
          pack(unit, rows: packedRows, columns: 0..<perRow, work, to: packed)
          run(
            unit, KeyList(count: count, list: nil), first, count, packed, i &* perRow..<(i &+ 1) &* perRow, total, part,
            work)
        }
      }
      first = end
    }
    for i in 0..<unit.rows {
      finish(unit, i, columns: 0..<perRow, at: i &* perRow, total, work)
    }
  }

  /// One chunk for some columns: the first goes straight to the total, later ones are joined to it.
  private func run(
    _ unit: Unit, _ list: KeyList, _ first: Int, _ count: Int, _ packed: UnsafeMutableRawPointer, _ columns: Range<Int>,
    _ total: Result, _ part: Result, _ work: Work
  ) {
    attend(
      unit, list, first: first, count: count, packed: packed, columns: columns.count, at: columns.lowerBound,
      into: first == 0 ? total : part, work)
    if first > 0 { join(total, part, columns: columns) }
  }

  // MARK: Split units: chunks and columns of one unit on many threads

  /// Columns of part p: at multiples of 16, so that every part is whole vectors.
  private func partColumns(_ p: Int) -> Range<Int> {
    let blocks = (plan.columns &+ 15) / 16
    return min(plan.columns, blocks &* p / plan.parts &* 16)..<min(plan.columns, blocks &* (p &+ 1) / plan.parts &* 16)
  }

  func runSplit() -> UInt64 {
    var others: UInt64 = 0
    for number in 0..<units { others &+= runSplitUnit(unit(number)) }
    return others
  }

  private func runSplitUnit(_ unit: Unit) -> UInt64 {
    let total = result(0)
    // Every worker needs the list; worker 0's copy is the one that is read.
    let list = keyList(unit, 0, work(0))
    var others = context.parallel(count: plan.parts, workers: plan.workers) { p, worker in
      pack(unit, rows: 0..<1, columns: partColumns(p), work(worker), to: packed(p))
    }
    let chunks = (list.count &+ Attend.chunk &- 1) / Attend.chunk
    var wave = 0
    while wave < chunks {
      guard !context.cancelled(token) else { return others }
      let inWave = min(plan.waveChunks, chunks &- wave)
      let begin = wave
      others &+= context.parallel(count: inWave &* plan.parts, workers: plan.workers) { task, worker in
        let slot = task / plan.parts
        let p = task &- slot &* plan.parts
        let columns = partColumns(p)
        let first = (begin &+ slot) &* Attend.chunk
        attend(
          unit, list, first: first, count: min(Attend.chunk, list.count &- first), packed: packed(p),
          columns: columns.count, at: columns.lowerBound, into: result(waveSlot(begin &+ slot, begin)), work(worker))
      }
      let slices = joinSlices
      others &+= context.parallel(count: slices, workers: plan.workers) { slice, worker in
        let columns = plan.columns &* slice / slices..<plan.columns &* (slice &+ 1) / slices
        var chunk = max(begin, 1)
        while chunk < begin &+ inWave {
          join(total, result(waveSlot(chunk, begin)), columns: columns)
          chunk &+= 1
        }
        if begin &+ inWave == chunks {
          finish(unit, 0, columns: columns, at: columns.lowerBound, total, work(worker))
        }
      }
      wave &+= inWave
    }
    if chunks == 0 {
      clear(total, columns: 0..<plan.columns)
      finish(unit, 0, columns: 0..<plan.columns, at: 0, total, work(0))
    }
    return others
  }

  /// Where the partial result of a chunk goes: the first is the total's beginning.
  private func waveSlot(_ chunk: Int, _ begin: Int) -> Int { chunk == 0 ? 0 : chunk &- begin &+ 1 }

  private var joinSlices: Int { max(1, min(plan.workers, plan.columns / 8)) }

  // MARK: Results

  /// Divides heads `columns` of row i by their denominators and stores them; `column`: where they are in the result.
  private func finish(_ unit: Unit, _ i: Int, columns: Range<Int>, at column: Int, _ total: Result, _ work: Work) {
    let query = unit.query(i)
    for (offset, c) in columns.enumerated() {
      let head = unit.kvHead &* shape.headsPerKV &+ c
      let at = column &+ offset
      let (factor, log) = denominator(max: total.max[at], sum: total.sum[at], sink: shape.sink?[head])
      let row = total.out + at &* shape.valueDim
      let to = out.row(query) + head &* out.stride[1]
      if out.dtype == .f32 {
        let floats = to.assumingMemoryBound(to: Float.self)
        for e in 0..<shape.valueDim { floats[e] = row[e] * factor }
      } else {
        for e in 0..<shape.valueDim { row[e] *= factor }
        storeFloats(row, shape.valueDim, as: out.dtype, to: to, kernels)
      }
      if let lse { (lse.row(query).assumingMemoryBound(to: Float.self))[head] = log }
    }
  }

  /// 1 / (sum + e^(sink - max)) and the log of the whole denominator.
  private func denominator(max: Float, sum: Float, sink: Float?) -> (factor: Float, log: Float) {
    guard let sink else { return sum == 0 ? (0, -.infinity) : (1 / sum, max + logf(sum)) }
    if sum == 0 { return (0, sink) }
    if sink <= max {
      let whole = sum + expf(sink - max)
      return (1 / whole, max + logf(whole))
    }
    let share = expf(max - sink)
    let whole = sum * share + 1
    return (share / whole, sink + logf(whole))
  }
}
