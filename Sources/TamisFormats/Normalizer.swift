// The `normalizer` of a tokenizer.json: Unicode's NFC, NFD, NFKC and NFKD, alone or in a sequence. The tables are those
// of the `tokenizers` library, Unicode 9: characters of later versions stay as they are.
// It refuses every other normalizer: they belong to tokenizers that are not byte-level.

package import TamisRuntime
import TamisShims

package struct Normalizer: Sendable {
  private enum Form: UInt64 {
    case nfc = 1
    case nfd, nfkc, nfkd
    var composes: Bool { self == .nfc || self == .nfkc }
    var isCompatible: Bool { self == .nfkc || self == .nfkd }
  }

  private static let stepLimit = 16
  private static let depthLimit = 4

  private var forms: UInt64 = 0  // four bits each, the last first
  private var count = 0

  /// nil: none.
  package init(_ value: JSONValue?) throws(TamisError) {
    if let value { try add(value, depth: 0) }
  }

  private mutating func add(_ value: JSONValue, depth: Int) throws(TamisError) {
    let type = try value.required("type")
    if type.equals("Sequence"), depth < Normalizer.depthLimit {
      for part in try value.required("normalizers").elements { try add(part, depth: depth &+ 1) }
    } else if type.equals("NFC") {
      try add(.nfc, value)
    } else if type.equals("NFD") {
      try add(.nfd, value)
    } else if type.equals("NFKC") {
      try add(.nfkc, value)
    } else if type.equals("NFKD") {
      try add(.nfkd, value)
    } else {
      throw TamisError(.unsupported, "tokenizer: normalizer \(try type.string().prefix(64))")
    }
  }

  private mutating func add(_ form: Form, _ value: JSONValue) throws(TamisError) {
    guard count < Normalizer.stepLimit else { throw value.failure("at most \(Normalizer.stepLimit) normalizers") }
    forms = forms << 4 | form.rawValue
    count &+= 1
  }

  private func form(_ step: Int) -> Form? {
    Form(rawValue: forms &>> UInt64(truncatingIfNeeded: 4 &* (count &- 1 &- step)) & 15)
  }

  /// Fills `out` with the text in its normal form, or returns false where that is the text itself. `text` is UTF-8.
  package func normalize(
    _ text: UnsafeBufferPointer<UInt8>, into out: inout GrowableBuffer<UInt8>
  ) throws(TamisError) -> Bool {
    guard count > 0, mayChange(text) else { return false }
    var scalars = GrowableBuffer<UInt32>(out.context)
    var step = 0
    while let form = step < count ? form(step) : nil {
      var decomposed = GrowableBuffer<UInt32>(out.context)
      if step == 0 {
        var position = 0
        while position < text.count {
          guard case .scalar(let scalar, let length) = UTF8Text.unit(UnsafeRawBufferPointer(text), at: position)
          else { return false }
          try Normalizer.decompose(scalar.value, form.isCompatible, into: &decomposed)
          position &+= length
        }
      } else {
        for scalar in scalars.elements { try Normalizer.decompose(scalar, form.isCompatible, into: &decomposed) }
      }
      try Normalizer.order(&decomposed)
      if form.composes { Normalizer.compose(&decomposed) }
      scalars = decomposed
      step &+= 1
    }
    out.truncate(to: 0)
    for scalar in scalars.elements { try Normalizer.write(scalar, to: &out) }
    guard out.count <= Tokenizer.textLimit &* 3 else {
      throw TamisError(.argument, "tokenize: \(out.count) bytes in normal form, at most \(Tokenizer.textLimit &* 3)")
    }
    return !out.elements.elementsEqual(text)
  }

  private static func write(_ scalar: UInt32, to out: inout GrowableBuffer<UInt8>) throws(TamisError) {
    func tail(_ shift: UInt32) -> UInt8 { 0x80 | UInt8(truncatingIfNeeded: scalar >> shift) & 0x3F }
    if scalar < 0x80 { return try out.append(UInt8(truncatingIfNeeded: scalar)) }
    if scalar < 0x800 {
      try out.append(UInt8(truncatingIfNeeded: 0xC0 | scalar >> 6))
    } else {
      if scalar < 0x10000 {
        try out.append(UInt8(truncatingIfNeeded: 0xE0 | scalar >> 12))
      } else {
        try out.append(UInt8(truncatingIfNeeded: 0xF0 | scalar >> 18))
        try out.append(tail(12))
      }
      try out.append(tail(6))
    }
    try out.append(tail(0))
  }

  /// ASCII is in every form; what lies below U+0300 is composed.
  private func mayChange(_ text: UnsafeBufferPointer<UInt8>) -> Bool {
    let least: UInt8 = count == 1 && form(0) == .nfc ? 0xCC : 0x80
    for byte in text where byte >= least { return true }
    return false
  }

  // MARK: the algorithm (Unicode Standard, sections 3.11 and 3.12)

  private static let hangul: (first: UInt32, l: UInt32, v: UInt32, t: UInt32) = (0xAC00, 0x1100, 0x1161, 0x11A7)
  private static let (vCount, tCount, syllables): (UInt32, UInt32, UInt32) = (21, 28, 11172)

  private static func decompose(
    _ scalar: UInt32, _ compatible: Bool, into out: inout GrowableBuffer<UInt32>
  ) throws(TamisError) {
    guard scalar >= 0xA0, !(0x3400..<0xA000 ~= scalar) else { return try out.append(scalar) }
    let syllable = scalar &- hangul.first
    if syllable < syllables {
      try out.append(hangul.l &+ syllable / (vCount &* tCount))
      try out.append(hangul.v &+ syllable / tCount % vCount)
      if syllable % tCount > 0 { try out.append(hangul.t &+ syllable % tCount) }
      return
    }
    var parts: UnsafePointer<UInt32>?
    let count = tamis_shims_decompose(scalar, compatible ? 1 : 0, &parts)
    guard count > 0 else { return try out.append(scalar) }
    try out.append(contentsOf: UnsafeBufferPointer(start: parts, count: Int(count)))
  }

  /// Sorts every run of combining characters by class, equal ones in their order: by counting, so that a long run of
  /// hostile text takes no longer than another.
  private static func order(_ scalars: inout GrowableBuffer<UInt32>) throws(TamisError) {
    var run = GrowableBuffer<UInt32>(scalars.context)
    var places = GrowableBuffer<Int>(scalars.context)
    var start = 0
    while start < scalars.count {
      run.truncate(to: 0)
      var (end, last, isOrdered) = (start, 0, true)
      while let scalar = scalars.element(at: end), case let combining = combiningClass(scalar), combining > 0 {
        try run.append(scalar)
        isOrdered = isOrdered && combining >= last
        (end, last) = (end &+ 1, combining)
      }
      if !isOrdered { try sort(run.elements, into: &scalars, at: start, &places) }
      start = end &+ 1
    }
  }

  private static func sort(
    _ run: UnsafeBufferPointer<UInt32>, into scalars: inout GrowableBuffer<UInt32>, at start: Int,
    _ places: inout GrowableBuffer<Int>  // where the next of each class goes
  ) throws(TamisError) {
    places.truncate(to: 0)
    try places.append(repeating: 0, count: 257)
    for scalar in run {
      let next = combiningClass(scalar) &+ 1
      places.set((places.element(at: next) ?? 0) &+ 1, at: next)
    }
    for i in 1..<257 { places.set((places.element(at: i) ?? 0) &+ (places.element(at: i &- 1) ?? 0), at: i) }
    for scalar in run {
      let combining = combiningClass(scalar)
      let place = places.element(at: combining) ?? 0
      scalars.set(scalar, at: start &+ place)
      places.set(place &+ 1, at: combining)
    }
  }

  /// In place: a character joins the last starter unless one of its class, or of none, stands between.
  private static func compose(_ scalars: inout GrowableBuffer<UInt32>) {
    var (count, starter, last) = (0, -1, 0)
    var read = 0
    while let scalar = scalars.element(at: read) {
      read &+= 1
      let combining = combiningClass(scalar)
      if starter >= 0, count &- 1 == starter || last < combining, let first = scalars.element(at: starter),
        case let whole = composed(first, scalar), whole > 0
      {
        scalars.set(whole, at: starter)
        continue
      }
      if combining == 0 { starter = count }
      last = combining
      scalars.set(scalar, at: count)
      count &+= 1
    }
    scalars.truncate(to: count)
  }

  private static func composed(_ first: UInt32, _ second: UInt32) -> UInt32 {
    guard second >= 0x300, !(0x3400..<0xA000 ~= second) else { return 0 }
    let (l, v, t, syllable) = (first &- hangul.l, second &- hangul.v, second &- hangul.t, first &- hangul.first)
    if l < 19, v < vCount { return hangul.first &+ (l &* vCount &+ v) &* tCount }
    if syllable < syllables, syllable % tCount == 0, t > 0, t < tCount { return first &+ t }
    return tamis_shims_compose(first, second)
  }

  private static func combiningClass(_ scalar: UInt32) -> Int {
    scalar < 0x300 || 0x3400..<0xA000 ~= scalar ? 0 : Int(tamis_shims_combining_class(scalar))
  }
}
