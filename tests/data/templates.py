"""Chat templates of our own that do what published ones are found to do (docs/templates.md)."""

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nHEADER{% endif %}"
)
BASE_CHAT = TURNS.replace("HEADER", "")
"""As a base model's tokenizer brings it, whose EOS is another token; it trims."""
OPENS_A_THOUGHT = TURNS.replace("HEADER", "<think>\n")
MAY_THINK = TURNS.replace("HEADER", "<think>\n{% if enable_thinking is false %}</think>\n{% endif %}")
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}"
) + BASE_CHAT
OBSTINATE_SYSTEM = (
    "{% set first = messages[0] %}<|im_start|>system\n"
    "{{ first['content'] if first['role'] == 'system' and first['content'] else 'You are kind.' }}<|im_end|>\n"
    "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""It writes its own system prompt in the place of an empty one."""
DATED = "{{ strftime_now('%d %b %Y') }} {{ today | default('') }}\n" + BASE_CHAT
NEEDS_TOOLS = "{% for tool in tools %}{{ tool.name }}{% endfor %}" + BASE_CHAT
"""As templates for calling tools do it: transformers gives ``tools`` as None."""
REASONING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.reasoning_content %}<muse>\n{{ m.reasoning_content }}\n</muse>\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<muse>\n{% endif %}"
)
"""It marks thoughts as no family in the table does."""
TWO_TOKEN_END = (
    "{% for m in messages %}<|start|>{{ m['role'] }}<|end|>{{ m['content'] }}\n<|eot|>{% endfor %}"
    "<|start|>assistant<|end|>"
)
"""It begins the assistant's turn unasked, and writes a line break before the end of every turn."""
