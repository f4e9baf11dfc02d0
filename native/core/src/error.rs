//! The texts of the crate's errors, in one place. Each error is defined beside what returns it.

use crate::buffer::{MESSAGE_LIMIT, MessageTooLarge, NotTaken};
use crate::map::{EditError, MAX_PATH};
use crate::packed::ReadError;
use crate::parts::Unfit;
use crate::snapshot::{RAW_LIMIT, SnapshotError};
use crate::state::FieldError;
use std::error::Error;
use std::fmt::{Display, Formatter, Result};

impl Display for ReadError {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str("the bytes do not follow the packed format")
    }
}

impl Display for EditError {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            EditError::NotAMap(index) => write!(f, "key {index} of the path is not in a map"),
            EditError::PathLength => write!(f, "a path has 1 to {MAX_PATH} keys"),
        }
    }
}

impl Display for FieldError {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            FieldError::Id => f.write_str("the id is not a binary"),
            FieldError::CreatedAt => f.write_str("the time of creation is not an integer"),
            FieldError::NotAMap => f.write_str("the value of this field must be a map"),
            FieldError::Name => f.write_str("neither a field nor a path"),
            FieldError::Required => f.write_str("the field cannot be removed"),
            FieldError::Path(error) => error.fmt(f),
        }
    }
}

impl Display for Unfit {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str("the value cannot be divided into parts")
    }
}

impl Display for MessageTooLarge {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(
            f,
            "more bytes than the buffer's limit, at most {MESSAGE_LIMIT}"
        )
    }
}

impl Display for NotTaken {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            NotTaken::TooLarge => MessageTooLarge.fmt(f),
            NotTaken::OverBudget => f.write_str("more work than may be done now"),
        }
    }
}

impl Display for SnapshotError {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            SnapshotError::InvalidFormat => f.write_str("not a snapshot"),
            SnapshotError::UnsupportedVersion => f.write_str("a version that is not known"),
            SnapshotError::Corrupt => f.write_str("damaged"),
            SnapshotError::UnknownAtom(name) => {
                write!(f, "unknown atom {}", String::from_utf8_lossy(name))
            }
            SnapshotError::TooLarge(bytes) => {
                write!(
                    f,
                    "{bytes} bytes before compression, of at most {RAW_LIMIT}"
                )
            }
            SnapshotError::Busy => f.write_str("more work than may be done now"),
        }
    }
}

impl Error for ReadError {}
impl Error for EditError {}
impl Error for FieldError {}
impl Error for Unfit {}
impl Error for MessageTooLarge {}
impl Error for NotTaken {}
impl Error for SnapshotError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_says_what_is_wrong() {
        let texts = [
            ReadError.to_string(),
            EditError::NotAMap(2).to_string(),
            FieldError::Path(EditError::PathLength).to_string(),
            NotTaken::TooLarge.to_string(),
            SnapshotError::UnknownAtom(b"name".to_vec()).to_string(),
        ];
        assert_eq!(
            texts,
            [
                "the bytes do not follow the packed format",
                "key 2 of the path is not in a map",
                "a path has 1 to 64 keys",
                "more bytes than the buffer's limit, at most 16777216",
                "unknown atom name",
            ]
        );
    }
}
