//! Becomes a build step, as `vminit` does in a guest.

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let code = match arguments.as_slice() {
        [_, word, file] if word == firebuild_layers::STEP_ARGUMENT => {
            firebuild_layers::run_step(std::path::Path::new(file))
        }
        _ => 2,
    };
    std::process::exit(code);
}
