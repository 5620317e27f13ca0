// tokenizer.json's patterns are written for Oniguruma's Ruby syntax; PCRE2 reads a slightly different language. This
// rewrites a pattern so that both match the same text, and refuses every construct of which that is not certain:
// anchors, word classes and boundaries, back-references, nested or intersected classes, inline switches.
//
// Differences that are rewritten: `\s` (PCRE2's also holds U+180E), `\v` (a class in PCRE2), `\d`, `\u`, script
// names (PCRE2 would match script extensions). Both sides use Unicode properties of their own library's version.

import TamisRuntime

struct RegexDialect: ~Copyable {
  private static let space = "\\x{09}-\\x{0D}\\x{85}\\p{Z}"

  private let source: [Unicode.Scalar]
  private var position = 0
  private var output = ""

  static func translate(_ pattern: String) throws(TamisError) -> String {
    var dialect = RegexDialect(pattern)
    try dialect.run()
    return dialect.takeOutput()
  }

  /// A pattern that matches exactly `text`.
  static func literal(_ text: String) -> String {
    text.unicodeScalars.map { "\\x{\(String($0.value, radix: 16))}" }.joined()
  }

  private init(_ pattern: String) { source = Array(pattern.unicodeScalars) }

  private consuming func takeOutput() -> String { output }

  private func peek(_ ahead: Int = 0) -> Unicode.Scalar? {
    position &+ ahead < source.count ? source[position &+ ahead] : nil
  }

  private func failure(_ what: String) -> TamisError {
    TamisError(.unsupported, "pre-tokenizer pattern: \(what) at character \(position)")
  }

  private mutating func copy(_ count: Int = 1) {
    for _ in 0..<count {
      if let scalar = peek() { output.unicodeScalars.append(scalar) }
      position &+= 1
    }
  }

  private mutating func run() throws(TamisError) {
    while let scalar = peek() {
      switch scalar {
      case "\\": try escape(inClass: false)
      case "[": try characterClass()
      case "(": try group()
      case "{": try interval()
      case "^", "$": throw failure("an anchor")
      default: copy()
      }
    }
  }

  // MARK: groups and intervals

  private static let groups: [[Unicode.Scalar]] = [
    ["?", ":"], ["?", "i", ":"], ["?", "="], ["?", "!"], ["?", "<", "="], ["?", "<", "!"],
  ]

  private mutating func group() throws(TamisError) {
    copy()
    guard peek() == "?" else {
      if peek() == "*" { throw failure("a verb") }
      return
    }
    for opening in RegexDialect.groups where source[position...].starts(with: opening) {
      copy(opening.count)
      return
    }
    throw failure("an inline switch, an atomic or a named group")
  }

  /// `{n}`, `{n,}` or `{n,m}` without a suffix: `{n}?` and `{n}+` mean other things in the two languages.
  private mutating func interval() throws(TamisError) {
    var length = 1
    var commas = 0
    while let scalar = peek(length), scalar != "}" {
      if scalar == "," { commas &+= 1 }
      guard scalar == "," ? length > 1 && commas == 1 : scalar.isASCII && scalar.properties.numericType == .decimal
      else { throw failure("an unusual repetition") }
      length &+= 1
    }
    guard length > 1, peek(length) == "}", peek(length &+ 1) != "+", peek(length &+ 1) != "?" else {
      throw failure("an unusual repetition")
    }
    copy(length &+ 1)
  }

  // MARK: classes

  private mutating func characterClass() throws(TamisError) {
    copy()
    if peek() == "^" { copy() }
    if peek() == "]" { throw failure("an empty class") }
    while let scalar = peek() {
      switch scalar {
      case "]":
        copy()
        return
      case "[": throw failure("a class within a class")
      case "&" where peek(1) == "&": throw failure("an intersection of classes")
      case "\\": try escape(inClass: true)
      default: copy()
      }
    }
    throw failure("a class without end")
  }

  // MARK: escapes

  private mutating func emit(_ text: String, consuming count: Int) {
    output += text
    position &+= count
  }

  /// A set of characters; in a class it must not be an end of a range.
  private mutating func emitSet(_ text: String, consuming count: Int, inClass: Bool) throws(TamisError) {
    emit(text, consuming: count)
    if inClass, peek() == "-", peek(1) != "]" { throw failure("a range of a set") }
  }

  private mutating func escape(inClass: Bool) throws(TamisError) {
    guard let scalar = peek(1) else { throw failure("an unfinished escape") }
    switch scalar {
    case "s":
      let set = RegexDialect.space
      try emitSet(inClass ? set : "[\(set)]", consuming: 2, inClass: inClass)
    case "S" where !inClass: emit("[^\(RegexDialect.space)]", consuming: 2)
    case "d": try emitSet("\\p{Nd}", consuming: 2, inClass: inClass)
    case "D": try emitSet("\\P{Nd}", consuming: 2, inClass: inClass)
    case "p", "P": try property(negated: scalar == "P", inClass: inClass)
    case "r", "n", "t", "f", "a", "e": copy(2)
    case "v": emit("\\x{0B}", consuming: 2)
    case "u": try hexadecimal(digits: 4, prefix: 2)
    case "x":
      if peek(2) == "{" {
        var digits = 0
        while let digit = peek(3 &+ digits), digit != "}" { digits &+= 1 }
        try hexadecimal(digits: digits, prefix: 3)
        position &+= 1
      } else {
        // A byte of the encoding, not a code point: the same thing only for ASCII.
        guard let high = peek(2)?.properties.numericType, high == .decimal, let first = peek(2), first < "8" else {
          throw failure("a byte escape")
        }
        try hexadecimal(digits: 2, prefix: 2)
      }
    case _ where scalar.isASCII && (scalar.properties.isAlphabetic || scalar.properties.numericType != nil):
      throw failure("the escape \\\(scalar)")
    case _ where scalar.isASCII: copy(2)
    default: emit(String(scalar), consuming: 2)
    }
  }

  private mutating func hexadecimal(digits: Int, prefix: Int) throws(TamisError) {
    var value: UInt32 = 0
    guard digits > 0, digits <= 6 else { throw failure("an invalid code point") }
    for index in 0..<digits {
      guard let digit = peek(prefix &+ index), let number = UInt32(String(digit), radix: 16) else {
        throw failure("an invalid code point")
      }
      value = value << 4 | number
    }
    guard Unicode.Scalar(value) != nil else { throw failure("an invalid code point") }
    emit("\\x{\(String(value, radix: 16))}", consuming: prefix &+ digits)
  }

  private static let categories: Set<String> = [
    "L", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "N", "Nd", "Nl", "No", "P", "Pc", "Pd", "Ps", "Pe",
    "Pi", "Pf", "Po", "S", "Sm", "Sc", "Sk", "So", "Z", "Zs", "Zl", "Zp", "C", "Cc", "Cf", "Cn", "Co",
  ]

  /// `\p{Name}`: a general category, or a script, which PCRE2's compiler then knows or refuses.
  private mutating func property(negated: Bool, inClass: Bool) throws(TamisError) {
    guard peek(2) == "{" else { throw failure("a property without braces") }
    var length = 3
    var negated = negated
    if peek(length) == "^" {
      negated.toggle()
      length &+= 1
    }
    var name = ""
    while let scalar = peek(length), scalar != "}" {
      guard scalar.isASCII, scalar.properties.isAlphabetic || scalar == "_", name.utf8.count < 64 else {
        throw failure("an unknown property")
      }
      name.unicodeScalars.append(scalar)
      length &+= 1
    }
    guard peek(length) == "}", !name.isEmpty else { throw failure("an unknown property") }
    let property = RegexDialect.categories.contains(name) ? name : "sc:\(name)"
    try emitSet((negated ? "\\P{" : "\\p{") + property + "}", consuming: length &+ 1, inClass: inClass)
  }
}
