// The directory of a checkpoint: one record for each tensor of each file, found by name.
// It refuses a header in which anything does not fit; the text names the tensor.

import TamisRuntime

struct TensorRecord: BitwiseCopyable {
  var nameStart: Int
  var nameLength: Int
  var shapeStart: Int
  var rank: UInt8
  var type: TensorType
  var file: UInt32
  var begin: Int  // bytes from the start of the file
  var end: Int
}

struct TensorTable: ~Copyable, Sendable {
  private(set) var records: GrowableBuffer<TensorRecord>
  private var names: GrowableBuffer<UInt8>
  private var shapes: GrowableBuffer<Int>
  private var slots: GrowableBuffer<UInt32>  // hash table: record index + 1

  init(_ context: Context) {
    records = GrowableBuffer(context)
    names = GrowableBuffer(context)
    shapes = GrowableBuffer(context)
    slots = GrowableBuffer(context)
  }

  var context: Context { records.context }

  func name(of record: TensorRecord) -> UnsafeBufferPointer<UInt8> {
    guard record.nameStart &+ record.nameLength <= names.count else { return UnsafeBufferPointer(start: nil, count: 0) }
    return UnsafeBufferPointer(rebasing: names.elements[record.nameStart..<(record.nameStart &+ record.nameLength)])
  }

  func shape(of record: TensorRecord) -> [Int] {
    guard record.shapeStart &+ Int(record.rank) <= shapes.count else { return [] }
    return Array(shapes.elements[record.shapeStart..<(record.shapeStart &+ Int(record.rank))])
  }

  // MARK: reading a header

  /// Checks a file's header and takes in its tensors. `dataStart` is where the header ends.
  mutating func add(
    _ header: JSONDocument, path: String, file: Int, dataStart: Int, fileLength: Int
  ) throws(TamisError) {
    guard header.root.isObject else { throw header.root.failure("an object of tensors") }
    let first = records.count
    for (key, value) in header.root.members where !key.equals("__metadata__") {
      try add(key, value, path: path, file: file, dataStart: dataStart, fileLength: fileLength)
    }
    try checkTiling(from: first, path: path, dataStart: dataStart, fileLength: fileLength)
  }

  private mutating func add(
    _ key: JSONValue, _ value: JSONValue, path: String, file: Int, dataStart: Int, fileLength: Int
  ) throws(TamisError) {
    let nameStart = names.count
    try key.appendString(to: &names)
    let shapeStart = shapes.count
    var record = TensorRecord(
      nameStart: nameStart, nameLength: names.count &- nameStart, shapeStart: shapeStart, rank: 0, type: .u8,
      file: UInt32(truncatingIfNeeded: file), begin: 0, end: 0)
    func failure(_ status: Status, _ what: String, _ table: borrowing TensorTable) -> TamisError {
      TamisError(status, "\(path): tensor \(quoted(table.name(of: record))): \(what)")
    }

    let type = try value.required("dtype")
    guard let known = TensorType.allCases.first(where: { type.equals($0.name) }) else {
      throw failure(.unsupported, "unknown dtype at byte \(type.offset) of the header", self)
    }
    record.type = known

    let dimensions = try value.required("shape")
    guard dimensions.isArray, dimensions.count <= Checkpoint.shapeLimit else {
      throw failure(.format, "its shape is no array of at most \(Checkpoint.shapeLimit) numbers", self)
    }
    var size = known.bytes
    for dimension in dimensions.elements {
      let extent = try dimension.integer(in: 0...Int.max)
      let (product, overflow) = size.multipliedReportingOverflow(by: extent)
      guard !overflow else { throw failure(.format, "its shape overflows", self) }
      size = product
      try shapes.append(extent)
    }
    record.rank = UInt8(truncatingIfNeeded: dimensions.count)

    let offsets = try value.required("data_offsets")
    let dataLength = fileLength &- dataStart
    var bounds = offsets.elements
    guard offsets.isArray, offsets.count == 2, let begin = try bounds.next()?.integer(),
      let end = try bounds.next()?.integer(), 0 <= begin, begin <= end, end <= dataLength
    else {
      throw failure(.format, "its data_offsets are not a range within the file's \(dataLength) bytes of data", self)
    }
    guard end &- begin == size else {
      throw failure(.format, "\(end &- begin) bytes of data, shape and dtype take \(size)", self)
    }
    record.begin = dataStart &+ begin
    record.end = dataStart &+ end
    guard size == 0 || record.begin % known.bytes == 0 else {
      throw failure(.unsupported, "starts at byte \(record.begin), which is no multiple of its element size", self)
    }
    try insert(record, path: path)
  }

  /// The tensors of one file must cover its data exactly once.
  private func checkTiling(from first: Int, path: String, dataStart: Int, fileLength: Int) throws(TamisError) {
    let added = records.elements[first...]
    var order = GrowableBuffer<UInt32>(context)
    for index in added.indices { try order.append(UInt32(truncatingIfNeeded: index)) }
    var sorted = order.mutableElements
    sorted.sort { left, right in
      let (a, b) = (added[Int(left)], added[Int(right)])
      return (a.begin, a.end) < (b.begin, b.end)
    }
    var position = dataStart
    for index in sorted {
      let record = added[Int(index)]
      guard record.begin == position else {
        let problem = record.begin < position ? "overlaps the tensor before it" : "leaves a hole before it"
        throw TamisError(
          .format, "\(path): tensor \(quoted(name(of: record))) starts at byte \(record.begin) and \(problem)")
      }
      position = record.end
    }
    guard position == fileLength else {
      throw TamisError(.format, "\(path): the tensors end at byte \(position), the file at byte \(fileLength)")
    }
  }

  // MARK: names

  func index(of name: UnsafeRawBufferPointer) -> Int? {
    guard slots.count > 0 else { return nil }
    var slot = hash(name) & (slots.count &- 1)
    while let taken = slots.element(at: slot), taken != 0, let record = records.element(at: Int(taken) &- 1) {
      if self.name(of: record).elementsEqual(name) { return Int(taken) &- 1 }
      slot = (slot &+ 1) & (slots.count &- 1)
    }
    return nil
  }

  private func hash(_ name: UnsafeRawBufferPointer) -> Int {
    var hasher = Hasher()
    hasher.combine(bytes: name)
    return hasher.finalize()
  }

  private mutating func insert(_ record: TensorRecord, path: String) throws(TamisError) {
    guard index(of: UnsafeRawBufferPointer(name(of: record))) == nil else {
      throw TamisError(.format, "\(path): tensor \(quoted(name(of: record))) exists twice")
    }
    try records.append(record)
    if records.count &* 2 > slots.count {
      let size = max(16, slots.count &* 2)
      slots.truncate(to: 0)
      try slots.append(repeating: 0, count: size)
      for index in 0..<records.count { place(index) }
    } else {
      place(records.count &- 1)
    }
  }

  private mutating func place(_ index: Int) {
    guard let record = records.element(at: index) else { return }
    var slot = hash(UnsafeRawBufferPointer(name(of: record))) & (slots.count &- 1)
    while let taken = slots.element(at: slot), taken != 0 { slot = (slot &+ 1) & (slots.count &- 1) }
    slots.set(UInt32(truncatingIfNeeded: index &+ 1), at: slot)
  }
}
