//! Which slot a key is in: CRC16 (XMODEM) of the key, or of its hash tag, over 16,384 slots.
//!
//! The algorithm is that of the [cluster specification](https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).

pub(in crate::redis) const SLOTS: u16 = 16_384;

const POLYNOMIAL: u16 = 0x1021;

const TABLE: [u16; 256] = table();

const fn table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut rest = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            let carries = rest & 0x8000 != 0;
            rest <<= 1;
            if carries {
                rest ^= POLYNOMIAL;
            }
            bit += 1;
        }
        table[byte] = rest;
        byte += 1;
    }
    table
}

pub(in crate::redis) fn of(key: &[u8]) -> u16 {
    crc16(tag(key)) % SLOTS
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        let index = usize::from((crc >> 8) as u8 ^ byte);
        (crc << 8) ^ TABLE[index]
    })
}

/// What stands between the first `{` and the next `}`, if that is not empty; else the whole key.
fn tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else {
        return key;
    };
    let rest = &key[open + 1..];
    match rest.iter().position(|byte| *byte == b'}') {
        Some(close) if close > 0 => &rest[..close],
        _ => key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
    }

    #[test]
    fn tags() {
        for (key, hashed) in [
            ("user:1", "user:1"),
            ("{user:1}:a", "user:1"),
            ("tk:l1:{user}:a{b}", "user"),
            ("foo{}{bar}", "foo{}{bar}"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar", "foo{bar"),
        ] {
            assert_eq!(tag(key.as_bytes()), hashed.as_bytes(), "{key}");
        }
        // As a server answers CLUSTER KEYSLOT.
        assert_eq!(of(b"foo"), 12_182);
        assert_eq!(of(b"{user1000}.following"), of(b"{user1000}.followers"));
    }
}
