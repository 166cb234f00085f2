;; Its memory has 64-bit addresses.
;; Expected: refused when it is loaded.
(module
  (memory (export "memory") i64 1)
  (data (i64.const 64) "TLHA" "\39\00\00\00" "\00\00\01\00" "\00\00\00\00" "\00\00\00\00" "\02\00" "\00\00\00\00\00\00\00\00\00\00" "\0b\00wide_memory" "\01\001" "\02\00no" "\03\00yes")
  (func (export "tllm_head_abi") (result i32) (i32.const 0x10000))
  (func (export "tllm_head_about") (result i32) (i32.const 64))
  (func (export "tllm_head_new") (param i32 i32) (result i32) (i32.const 8))
  (func (export "tllm_head_input") (param i32) (result i32) (i32.const 1024))
  (func (export "tllm_head_output") (param i32) (result i32) (i32.const 32768))
  (func (export "tllm_head_begin") (param i32 i32) (result i32) (i32.const 0))
  (func (export "tllm_head_judge") (param i32 i32) (result i32) (i32.const 0))
)
