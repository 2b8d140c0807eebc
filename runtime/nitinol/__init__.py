"""Nitinol: a supervised, actor-based, model-agnostic agent runtime.

from nitinol import Agent, Runtime, run, tool
"""

from nitinol import errors, events
from nitinol.actors.actor import Down, LoopActor, ThreadActor
from nitinol.actors.child_spec import ChildSpec, SupervisorSpec
from nitinol.agent import Agent, AgentOptions
from nitinol.agent_ref import AgentRef, AgentStatus
from nitinol.budget import Budget
from nitinol.child_ref import ChildRef, SupervisorRef
from nitinol.compaction import Compaction
from nitinol.errors import ToolError
from nitinol.handle import RunHandle
from nitinol.hooks import Block, Halt, HookContext, Hooks
from nitinol.http import Http
from nitinol.messages import Audio, Document, Image, Message, Text, ToolCall
from nitinol.oneshot import arun, run, stream
from nitinol.prices import Prices
from nitinol.provider import Delta, ModelInfo, ModelRequest, ModelResponse, Provider
from nitinol.result import RunResult, ToolCallRecord
from nitinol.retry import Retry
from nitinol.runtime import Runtime, TreeNode
from nitinol.tool_spec import Approval, Tool, ToolContext, ToolResult, tool
from nitinol.usage import Usage

__all__ = [
    "Agent",
    "AgentOptions",
    "AgentRef",
    "AgentStatus",
    "Approval",
    "Audio",
    "Block",
    "Budget",
    "ChildRef",
    "ChildSpec",
    "Compaction",
    "Delta",
    "Document",
    "Down",
    "Halt",
    "HookContext",
    "Hooks",
    "Http",
    "Image",
    "LoopActor",
    "Message",
    "ModelInfo",
    "ModelRequest",
    "ModelResponse",
    "Prices",
    "Provider",
    "Retry",
    "RunHandle",
    "RunResult",
    "Runtime",
    "SupervisorRef",
    "SupervisorSpec",
    "Text",
    "ThreadActor",
    "Tool",
    "ToolCall",
    "ToolCallRecord",
    "ToolContext",
    "ToolError",
    "ToolResult",
    "TreeNode",
    "Usage",
    "arun",
    "errors",
    "events",
    "run",
    "stream",
    "tool",
]
