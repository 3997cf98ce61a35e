//! What each algorithm admits of the same calls, as a table; with `accuracy DIR` also as pictures, which are written there.

use std::{env, fs, path::Path};

use bench::{
    accuracy::{self, LIMIT},
    plot,
};

fn main() {
    println!("limit {LIMIT} in 1 s: the most admitted in any second / admitted in all\n");
    print!("{}", accuracy::table());
    if let Some(folder) = env::args().nth(1) {
        for (file, picture) in plot::pictures() {
            let path = Path::new(&folder).join(file);
            fs::write(&path, picture).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            println!("{}", path.display());
        }
    }
}
