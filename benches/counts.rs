//! A plugin of the emulator qemu that counts instructions: `instructions.py` compiles and loads it.
//!
//! At each call of the C library's `getppid` it writes a line to the file that the argument `out=FILE` names: how many
//! instructions all threads have executed. The declarations are those of `qemu-plugin.h`, in which every version of
//! the interface has them.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

type Id = u64;

#[repr(C)]
pub struct Info {
    target: *const c_char,
    // more fields follow
}

#[repr(C)]
pub struct Block {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, translated: extern "C" fn(Id, *mut Block));
    fn qemu_plugin_register_vcpu_tb_exec_cb(
        block: *mut Block,
        executed: extern "C" fn(c_uint, *mut c_void),
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    fn qemu_plugin_register_vcpu_syscall_cb(id: Id, called: Syscall);
}

type Syscall = extern "C" fn(Id, c_uint, i64, u64, u64, u64, u64, u64, u64, u64, u64);

#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 1;

static COUNT: AtomicU64 = AtomicU64::new(0);
/// The file, and the number of the system call `getppid`.
static OUT: OnceLock<(File, i64)> = OnceLock::new();

/// The emulator has translated a block of instructions, which are executed one after the other.
extern "C" fn translated(_: Id, block: *mut Block) {
    // SAFETY: the block is the emulator's, and a number travels as the pointer that is handed on.
    unsafe {
        let instructions = std::ptr::without_provenance_mut(qemu_plugin_tb_n_insns(block));
        qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, instructions);
    }
}

extern "C" fn executed(_: c_uint, instructions: *mut c_void) {
    COUNT.fetch_add(instructions.addr() as u64, Relaxed);
}

extern "C" fn called(
    _: Id,
    _: c_uint,
    number: i64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
) {
    let (mut file, getppid) = OUT.get().map(|(file, number)| (file, *number)).expect("installed");
    if number == getppid {
        writeln!(file, "{}", COUNT.load(Relaxed)).expect("the file can be written");
    }
}

/// # Safety
/// The emulator calls it, with the name of its target and `argc` arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    info: *const Info,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    // SAFETY: as the emulator promises.
    let (target, argument) = unsafe {
        if argc != 1 {
            return 1;
        }
        (CStr::from_ptr((*info).target), CStr::from_ptr(*argv))
    };
    let getppid = match target.to_bytes() {
        b"x86_64" => 110,
        _ => 173, // that of all newer architectures
    };
    let Some(file) = argument.to_str().ok().and_then(|text| text.strip_prefix("out=")) else {
        return 1;
    };
    let Ok(file) = File::create(file) else { return 1 };
    if OUT.set((file, getppid)).is_err() {
        return 1;
    }
    // SAFETY: the functions have the types that the emulator expects.
    unsafe {
        qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
        qemu_plugin_register_vcpu_syscall_cb(id, called);
    }
    0
}
